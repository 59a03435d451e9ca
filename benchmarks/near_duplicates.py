"""Recall of near duplicates at a rate of false positives: the trained detector and two controls.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb clip
    python benchmarks/near_duplicates.py --deal clip/usr/share/openclipart/png shards
    python benchmarks/near_duplicates.py --pictures "shards/test/*.tar" \
        --weights runs/near_duplicates --clip runs/emoji/final.safetensors --save

Each drawing of the test families is copied in ten ways that training has not used, and mirrored. A
threshold keeps a rate of false positives over all pairs of different drawings, of drawings and
copies of others; recall is the share of copies above it. Drawings are counted without sets of
symbols (cards, flags, road signs, icons), and once more with them. A detector gets no row unless
its vectors have length 1 and a second pass gives the same ones.

Rows go to ``benchmarks/results/near_duplicates.jsonl`` with --save, or to where --json says.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.parts.common import harness
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile, device_name
from benchmarks.parts.common.text import align
from benchmarks.parts.near.copies import COPIES, copies_of
from benchmarks.parts.near.pictures import Drawing, write_shards
from benchmarks.parts.near.recall import RATES, may_be_same, measure
from clipfast.curate.near.detectors import Detector, open_detector
from clipfast.curate.near.looks import split
from clipfast.data import ShardReader
from clipfast.data.pairs import squashed
from clipfast.data.rgb import open_rgb
from clipfast.data.shards import counts, expand

SUBJECT = "near_duplicates"
DEFAULTS = {"cpu": {"runs": 5, "pictures": "sample/twemoji", "limit": 0}}
_BATCH = 64


def read(pattern: str, limit: int) -> list[Drawing]:
    """Drawings of shards, in their order.

    Args:
        pattern: of the shards.
        limit: so many at most; 0: all.
    """
    shards = expand(pattern)
    reader = ShardReader(shards)
    found = [
        Drawing(reader.caption(s, r), np.asarray(open_rgb(reader.image(s, r))))
        for s, rows in enumerate(counts(shards))
        for r in range(rows)
    ]
    reader.close()
    return found[: limit or None]


def vectors(detector: Detector, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """``[N, D]`` of pictures, in batches of one size."""
    parts = range(0, len(pictures), _BATCH)
    return np.concatenate([detector.embed(pictures[i : i + _BATCH]) for i in parts])


def rows_of(
    name: str, spec: str, drawings: list[Drawing], copied: dict[str, list[np.ndarray]], runs: int
) -> list[harness.Row]:
    """What a detector finds among all drawings and among those that are no symbols, and how fast
    it makes vectors.

    Args:
        name: for tables.
        spec: see ``open_detector``.
        drawings: N.
        copied: by kind a copy of each.
        runs: timed ones.
    """
    detector = open_detector(spec)
    pictures = [each.pixels for each in drawings]
    originals = vectors(detector, pictures)
    of_copies = {kind: vectors(detector, made) for kind, made in copied.items()}
    small = [squashed(Image.fromarray(pixels), 32) for pixels in pictures]
    same = may_be_same([each.family for each in drawings], small)

    def check() -> None:
        for look in split(originals, detector.looks):
            lengths = np.linalg.norm(look, axis=1)
            assert np.allclose(lengths, 1, atol=1e-3), "vectors are not of length 1"
        again = vectors(detector, pictures[:_BATCH])
        assert np.allclose(again, originals[:_BATCH], atol=1e-5), "a second pass differs"

    some = pictures[:_BATCH]
    timed = harness.measure(
        name,
        functools.partial(detector.embed, some),
        check=check,
        warmup=1,
        runs=runs,
        items=len(some),
        memory=False,
        threads=torch.get_num_threads(),
        digest=detector.digest,
    )
    rows = []
    plain = np.array([not each.is_symbol for each in drawings])
    for case, keep in (("drawings", plain), ("drawings and symbols", np.ones_like(plain))):
        found = measure(
            originals[keep],
            {k: v[keep] for k, v in of_copies.items()},
            same[np.ix_(keep, keep)],
            detector.looks,
        )
        curve = {
            f"{rate:g}": {
                "threshold": found.thresholds[rate],
                "mean": found.mean(rate),
                **{kind: by[rate] for kind, by in found.recall.items()},
            }
            for rate in RATES
        }
        rows.append(
            {**timed, "case": case, "pictures": int(keep.sum()), "negatives": found.negatives,
             "width": originals.shape[1], "recall": curve}
        )  # fmt: skip
    return rows


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--pictures", help="shards to measure on, a pattern")
    parser.add_argument("--weights", type=Path, help="folder of the trained detector")
    parser.add_argument("--clip", nargs="*", help="weights of CLIPs, as controls")
    parser.add_argument("--limit", type=int, help="so many pictures at most; 0: all")
    parser.add_argument(
        "--deal", nargs=2, type=Path, metavar=("PNG", "OUT"), help="make the shards, and end"
    )
    add_run_options(parser, DEFAULTS, save="write to results/ in any case")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the rows."""
    options = parse(build_parser(), argv, DEFAULTS)
    if options.deal:
        write_shards(*options.deal)
        return
    torch.set_num_threads(1)
    specs = {"perceptual hash": "hash"}
    for path in options.clip or ():
        specs[f"CLIP, {Path(path).parent.name or path}"] = f"clip:{path}"
    if options.weights is not None:
        specs["clipfast, trained"] = str(options.weights)
    drawings = read(options.pictures, options.limit)
    pictures = [each.pixels for each in drawings]
    copied = {kind: copies_of(kind, pictures) for kind in (*COPIES, "mirror")}
    print(f"{len(drawings):,} drawings, {sum(each.is_symbol for each in drawings):,} are symbols")
    rows = RowFile(SUBJECT, options, lambda row: (row["case"], row["name"]))
    for name, spec in specs.items():
        rows.add(rows_of(name, spec, drawings, copied, options.runs))
    print(device_name(rows.rows[0]))
    print(table(rows.rows))
    rows.finish()


def table(rows: Sequence[harness.Row]) -> str:
    """Recall by rate, then by kind at 1e-5."""
    head = ["case", "", "images/s", *(f"{rate:g}" for rate in RATES), *COPIES, "mirror"]
    lines = [head]
    for row in rows:
        curve = row["recall"]
        line = [row["case"], row["name"], f"{row['items_per_s']:,.0f}"]
        line += [f"{curve[f'{rate:g}']['mean']:.3f}" for rate in RATES]
        line += [f"{curve['1e-05'][kind]:.3f}" for kind in (*COPIES, "mirror")]
        lines.append(line)
    return align(lines)


if __name__ == "__main__":
    main()

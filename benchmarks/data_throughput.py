"""Images per second of clipfast's loader, a torch DataLoader and webdataset, on the same cores.

All read the same shards, decode, cut and resize at random, normalise, and make batches. OpenCLIP's
transform does it for the others, in as many workers as there are cores; its tokenizer runs too, as
in its training program, once also without. Images per second of a core are taken from the
processors' time: on a machine that others use too they are what can be compared.

Shards: the embedded sample of 64 x 64 pixels, and JPEGs (quality 90, 4:2:0) made here of Debian's
openclipart-png (drawings) and mate-backgrounds (photographs), or of the sample enlarged.

Before it is timed, our first batch is compared with Pillow's pixels and OpenCLIP's tokens.
``scaled`` decodes large JPEGs in a smaller size: its row says how far its pixels are off.

    python benchmarks/data_throughput.py                             what this machine has
    python benchmarks/data_throughput.py --pictures photographs --sizes 1280 --cores 1
    apt-get download openclipart-png mate-backgrounds
    for each in *.deb; do dpkg -x $each pictures; done
    python benchmarks/data_throughput.py --root pictures

Rows go to ``benchmarks/results/data_throughput.jsonl`` and the plot beside it, under the default
options or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.parts.common import peers
from benchmarks.parts.common.contest import Absence, NotMeasured, require_ours
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.data import report
from benchmarks.parts.data.contenders import CONTENDERS, Setting
from benchmarks.parts.data.measure import measure_case
from benchmarks.parts.data.pictures import SOURCES, Pictures, is_here, make

SUBJECT = "data_throughput"
_CORES = len(os.sched_getaffinity(0))
DEFAULTS = {
    "cpu": {"cores": sorted({1, _CORES}), "runs": 5, "contenders": list(CONTENDERS)},
    "cuda": {"cores": [_CORES], "runs": 3, "contenders": list(CONTENDERS)},
}
SAMPLE_SIZE, SAMPLE_BATCH = 64, 256
# Samples of a set, by the width of its pictures: about as many bytes each.
_COUNTS = ((640, 512), (1280, 192), (1 << 30, 64))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument(
        "--pictures", nargs="+", choices=SOURCES, help="all that are on this machine, if left out"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[640, 1280], help="widths of made pictures"
    )
    parser.add_argument("--image-size", type=int, default=224, help="of what is made of them")
    parser.add_argument("--batch", type=int, default=64, help="made pictures of a batch")
    parser.add_argument("--cores", type=int, nargs="+", help="processors to use, each in turn")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a timed run")
    parser.add_argument("--folder", type=Path, help="for made shards; a temporary one if left out")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="where Debian's packages are unpacked"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one size, all cores, ours and OpenCLIP's, two runs"
    )
    add_run_options(parser, DEFAULTS, save="write to results/, beside the rows of other cases")
    return parser


def quick(options: argparse.Namespace) -> None:
    """Less of everything, for the suite."""
    options.sizes, options.cores, options.runs, options.seconds = [640], [_CORES], 2, 1.0
    options.contenders = ["clipfast", "dataloader"]


def sets_of(options: argparse.Namespace) -> Iterator[tuple[Pictures, int, int]]:
    """Sets of pictures, with the size of what is made of them and the batch."""
    named = options.pictures or [each for each in SOURCES if is_here(each, options.root)]
    if "sample" in named:
        yield Pictures("sample", None, 0), SAMPLE_SIZE, SAMPLE_BATCH
    # Enlarged, it stands in where there is nothing else.
    sources = [source for source in named if source != "sample"] or ["sample"]
    for source in sources:
        for width in options.sizes:
            count = next(count for most, count in _COUNTS if width <= most)
            size = (width, width * 4 // 5)
            yield Pictures(source, size, count), options.image_size, options.batch


def run_cases(options: argparse.Namespace, rows: RowFile, folder: Path) -> list[Absence]:
    """Measure every set on every number of cores; write and print each as it is done."""
    absent = []
    sets = list(sets_of(options))
    total = len(sets) * len(options.cores) * options.runs * len(options.contenders)
    with tqdm(total=total, unit=" runs", leave=False) as bar:
        for pictures, size, batch in sets:
            try:
                shards = make(pictures, folder, options.root)
            except NotMeasured as error:
                bar.write(f"\n{pictures.name}: not measured: {error}")
                continue
            # Nothing of the sample is larger than what is made of it.
            idle = "clipfast-scaled" if pictures.size is None else ""
            for cores in options.cores:
                setting = Setting(tuple(shards), size, batch, cores, options.device)
                new, missing = measure_case(
                    [key for key in options.contenders if key != idle],
                    setting,
                    options.runs,
                    options.seconds,
                    bar.update,
                    pictures=pictures.name,
                    case=f"{pictures.name}, to {size}, cores {cores}",
                )
                rows.add(new)
                if new:
                    bar.write(f"\n{report.told(new[0])}, {options.device}")
                    bar.write(report.table(new))
                for absence in missing:
                    bar.write(f"{absence.name}: {absence.reason}")
                absent += missing
    return absent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their tables, and save what was measured."""
    options = parse(build_parser(), argv, DEFAULTS)
    if options.quick:
        quick(options)
    peers.require_open_clip()
    rows = RowFile(SUBJECT, options, report.case_of)
    with tempfile.TemporaryDirectory() as temporary:
        absent = run_cases(options, rows, options.folder or Path(temporary))
    rows.finish(report.plot)
    require_ours(absent)


if __name__ == "__main__":
    main()

"""Indexes images and decodes what the index leaves in, as training does.

python images_worker.py FOLDER

FOLDER/images.json names the files and the side of the square in the middle of each picture. Written
are FOLDER/reasons.json, by file, '' for those that are in the index; FOLDER/without.json, the same
of an index that asked no DALI; FOLDER/errors.json, of what the index leaves in and the loader does
not decode; and FOLDER/pixels.npz, ``[S, S, 3]`` of 0..255 for each file.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np


def main() -> None:
    """Index and decode."""
    folder = Path(sys.argv[1])
    from clipfast.data.index import index_shards

    sides: dict[str, int] = json.loads((folder / "images.json").read_text())
    told: dict[str, dict[str, str]] = {"reasons": {}, "without": {}, "errors": {}}
    pixels: dict[str, np.ndarray] = {}
    for side in sorted(set(sides.values())):
        names = [name for name, own in sides.items() if own == side]
        shard = str(_write(folder, names))
        for dali, key in ((False, "without"), (True, "reasons")):
            index_shards([shard], workers=1, force=True, dali=dali, progress=False)
            told[key] |= _reasons(folder / "index_report.tsv", names)
        left = [name for name in names if not told["reasons"][name]]
        _decode(folder, left, side, pixels, told["errors"])
    for key, values in told.items():
        (folder / f"{key}.json").write_text(json.dumps(values))
    np.savez(folder / "pixels.npz", **pixels)


def _decode(
    folder: Path, names: list[str], side: int, pixels: dict[str, np.ndarray], errors: dict[str, str]
) -> None:
    """All at once; where that fails, halves."""
    from clipfast.data import EvalLoader
    from clipfast.preprocessing import MEAN, STD

    if not names:
        return
    try:
        loader = EvalLoader(str(_write(folder, names)), side, len(names), threads=1)
        for batch in loader:
            images = batch.images.permute(0, 2, 3, 1).double().numpy()
            images = (images * np.array(STD) + np.array(MEAN)) * 255
            for row, image in zip(batch.row, images, strict=True):
                pixels[names[row]] = image.astype(np.float32)
    except Exception as error:  # of whatever kind
        if len(names) == 1:
            errors[names[0]] = str(error)
            return
        middle = len(names) // 2
        for half in (names[:middle], names[middle:]):
            _decode(folder, half, side, pixels, errors)


def _write(folder: Path, names: list[str]) -> Path:
    shard = folder / f"{names[0]}-{len(names)}.tar"
    with tarfile.open(shard, "w") as tar:
        for name in names:
            for member, data in (
                (f"{name}.jpg", (folder / name).read_bytes()),
                (f"{name}.txt", b"x"),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return shard


def _reasons(report: Path, names: list[str]) -> dict[str, str]:
    rows = [line.split("\t") for line in report.read_text().splitlines()[1:]]
    told = {row[1]: row[2] for row in rows}
    return {name: told.get(name, "") for name in names}


if __name__ == "__main__":
    main()

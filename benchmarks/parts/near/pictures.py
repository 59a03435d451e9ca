"""Drawings of Debian's openclipart-png, divided so that no drawing is on both sides.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb clip
    python benchmarks/near_duplicates.py --deal clip/usr/share/openclipart/png shards

writes ``shards/train`` and ``shards/test``.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clipfast.data.rgb import open_rgb
from clipfast.data.shardwriter import ShardWriter

# Pictures are kept at most this large, in pixels.
SIDE = 256
# Of one family: 1,376 stars would teach and measure nothing else.
_MOST = 40
_LARGEST_FILE = 4_000_000
# Words that tell members of a family apart.
_COLOURS = {
    "azure", "black", "blue", "brown", "bw", "color", "colour", "cyan", "dark", "gold",
    "gray", "green", "grey", "light", "orange", "pink", "purple", "red", "silver", "violet",
    "white", "yellow",
}  # fmt: skip
# Folders of symbols: each holds one hand's variations of a few shapes, and a road sign and the next
# one differ by less than a picture and its copy.
_SYMBOLS = (
    "computer/icons",
    "computer/buttons",
    "recreation/games/cards",
    "shapes",
    "signs_and_symbols",
    "special",
    "transportation/roadsigns",
)


@dataclass(frozen=True)
class Drawing:
    """A picture of the collection.

    Attributes:
        name: its path within it.
        pixels: ``[H, W, 3]`` uint8, on white.
    """

    name: str
    pixels: np.ndarray

    @property
    def family(self) -> str:
        """The drawings that it may be a variant of: same folder, same first word."""
        folder, _, file = self.name.rpartition("/")
        words = [w for w in re.split(r"[^a-z]+", file.lower().removesuffix(".png")) if w]
        words = [w for w in words if w not in _COLOURS]
        return f"{folder}/{words[0] if words else file}"

    @property
    def is_held_out(self) -> bool:
        """Whether it is one to measure on: a third of the families is."""
        return zlib.crc32(self.family.encode()) % 3 == 0

    @property
    def is_symbol(self) -> bool:
        """Whether it belongs to a set of symbols."""
        return self.name.startswith(_SYMBOLS)


def drawings(folder: Path) -> Iterator[Drawing]:
    """All drawings of the collection, in the order of their names.

    Links, files that are broken or huge, and pictures without anything in them are left out; so are
    those of a family beyond the first 40.

    Args:
        folder: that the package installs, ``.../openclipart/png``.
    """
    taken: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or path.stat().st_size > _LARGEST_FILE:
            continue
        family = Drawing(name, np.empty(0)).family
        if taken[family] == _MOST or (pixels := _read(path)) is None:
            continue
        taken[family] += 1
        yield Drawing(name, pixels)


def _read(path: Path) -> np.ndarray | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = open_rgb(path.read_bytes())
    except Exception:  # Pillow raises many kinds
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    return pixels if min(pixels.shape[:2]) >= 8 and pixels.std() > 3 else None


def write_shards(folder: Path, out: Path) -> None:
    """Write ``out/train`` and ``out/test``: a caption is the drawing's name.

    Args:
        folder: see `drawings`.
        out: where to.
    """
    writers = {part: ShardWriter(str(out / part), 2000) for part in ("train", "test")}
    for part in writers:
        (out / part).mkdir(parents=True, exist_ok=True)
    for drawing in drawings(folder):
        file = io.BytesIO()
        Image.fromarray(drawing.pixels).save(file, "PNG")
        part = "test" if drawing.is_held_out else "train"
        writers[part].add(file.getvalue(), "png", drawing.name.encode())
    for part, writer in writers.items():
        writer.finish()
        print(f"{part}: {writer.samples:,} drawings")

"""Shards of JPEGs of one size, made of whatever pictures a machine has; the same bytes each time.

    sample        the embedded sample as it is, 64 x 64 pixels; enlarged where a size is asked for
    openclipart   drawings of Debian's package openclipart-png
    photographs   photographs of Debian's package mate-backgrounds

Drawings compress better than photographs, and enlarged ones better still: a row says what it is of.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from benchmarks.parts.common.captions import SAMPLE
from benchmarks.parts.common.contest import NotMeasured
from clipfast.data.index import index_shards
from clipfast.data.random_pairs import web_lengths
from clipfast.data.rgb import open_rgb
from clipfast.files import write_whole

# Folder below the root of the file system, and endings, of each source.
FOLDERS = {
    "openclipart": ("usr/share/openclipart/png", (".png",)),
    "photographs": ("usr/share/backgrounds/mate/nature", (".jpg", ".jpeg")),
}
SOURCES = ("sample", *FOLDERS)
PACKAGES = {"openclipart": "openclipart-png", "photographs": "mate-backgrounds"}
QUALITY = 90
SHARDS = 8
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_MOST_PIXELS = 30_000_000
_WORDS = "a photo of the old red house with trees near river and two people in snow at night"


@dataclass(frozen=True)
class Pictures:
    """A set of shards.

    Attributes:
        source: One of SOURCES.
        size: Width and height, pixels; None is the sample as it is.
        count: Samples in all shards.
        seed: Of their choice and captions.
    """

    source: str
    size: tuple[int, int] | None
    count: int
    seed: int = 0

    @property
    def name(self) -> str:
        """For tables and folders."""
        if self.size is None:
            return "sample, 64 x 64"
        made = ", enlarged" if self.source == "sample" else ""
        return f"{self.source}{made}, {self.size[0]} x {self.size[1]}"


def is_here(source: str, root: Path) -> bool:
    """Whether a source's pictures are on this machine."""
    return source not in FOLDERS or bool(_files(source, root))


def make(pictures: Pictures, folder: Path, root: Path) -> list[str]:
    """The shards of a set, made where they are not there yet.

    Args:
        pictures: Which.
        folder: Where made shards are kept, each set in a folder of its own.
        root: What stands for "/" where packages are unpacked elsewhere (``dpkg -x``).

    Returns:
        Paths.

    Raises:
        NotMeasured: The pictures are not on this machine; says how to get them.
    """
    if pictures.size is None:
        return [str(path) for path in sorted(SAMPLE.glob("*.tar"))]
    place = folder / pictures.name.replace(", ", "-").replace(" ", "")
    paths = [place / f"{shard:05d}.tar" for shard in range(SHARDS)]
    recipe = {"count": pictures.count, "seed": pictures.seed, "quality": QUALITY}
    done = place / "made.json"
    if not (done.exists() and json.loads(done.read_text()) == recipe):
        place.mkdir(parents=True, exist_ok=True)
        images = _jpegs(pictures, root)
        captions = _captions(pictures)
        for shard, path in enumerate(paths):
            share = len(range(shard, pictures.count, SHARDS))
            with tarfile.open(path, "w") as tar:
                for number in range(share):
                    key = f"{shard:05d}{number:05d}"
                    _add(tar, f"{key}.jpg", next(images))
                    _add(tar, f"{key}.txt", next(captions).encode())
        index_shards([str(path) for path in paths], workers=1, dali=False, progress=False)
        write_whole(done, json.dumps(recipe).encode())
    return [str(path) for path in paths]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _captions(pictures: Pictures) -> Iterator[str]:
    """As long as captions of the web are: a token a word."""
    rng = random.Random(pictures.seed)
    words = _WORDS.split()
    lengths = web_lengths((torch.arange(pictures.count) + 0.5) / pictures.count).tolist()
    rng.shuffle(lengths)
    for length in lengths:
        yield " ".join(rng.choice(words) for _ in range(length - 2))


def _jpegs(pictures: Pictures, root: Path) -> Iterator[bytes]:
    """Cuts of a picture each, brought to the size."""
    assert pictures.size is not None
    rng = random.Random(pictures.seed)
    width, height = pictures.size
    for image in _originals(pictures.source, root, rng):
        scale = max(width / image.width, height / image.height)
        if scale < 1:
            # Not the whole of a large photograph each time.
            scale = min(1.0, scale * rng.uniform(1, 1.8))
        box = (min(image.width, width / scale), min(image.height, height / scale))
        left, top = (
            rng.uniform(0, whole - part) for whole, part in zip(image.size, box, strict=True)
        )
        cut = (left, top, min(image.width, left + box[0]), min(image.height, top + box[1]))
        buffer = io.BytesIO()
        resized = image.resize(pictures.size, Image.Resampling.BICUBIC, box=cut)
        resized.save(buffer, "JPEG", quality=QUALITY)
        yield buffer.getvalue()


def _originals(source: str, root: Path, rng: random.Random) -> Iterator[Image.Image]:
    """Without end."""
    if source == "sample":
        files = _sample_files()
    else:
        files = list(_files(source, root))
    if not files:
        raise NotMeasured(
            f"no pictures in {root / FOLDERS[source][0]}: apt-get install {PACKAGES[source]}, or "
            f"apt-get download it, dpkg -x it and pass the folder as --root"
        )
    rng.shuffle(files)
    while True:
        found = False
        for file in files:
            data = file if isinstance(file, bytes) else file.read_bytes()
            try:
                with warnings.catch_warnings():
                    # Those of more pixels than Pillow likes; one is enough to be left out.
                    warnings.simplefilter("error", Image.DecompressionBombWarning)
                    image = Image.open(io.BytesIO(data))
                with image:
                    fits = image.width * image.height <= _MOST_PIXELS and min(image.size) > 31
                if fits:
                    found = True
                    yield open_rgb(data)
            except (OSError, ValueError, *_BOMBS):
                continue
        if not found:
            raise NotMeasured(f"none of {len(files)} pictures of {source} can be read")


def _files(source: str, root: Path) -> list[Path]:
    folder, endings = FOLDERS[source]
    return sorted(path for path in (root / folder).rglob("*") if path.suffix.lower() in endings)


def _sample_files() -> list[Path | bytes]:
    found: list[Path | bytes] = []
    for path in sorted(SAMPLE.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append(file.read())
    return found

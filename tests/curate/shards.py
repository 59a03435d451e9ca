"""Small shards of given captions, for the tests of this folder."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def png(colour: tuple[int, int, int] = (0, 0, 0), size: int = 4) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def make_shard(path: Path, samples: Sequence[tuple[str, str, bytes]]) -> str:
    """Write a tar of samples: key, caption and the bytes of a PNG."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, caption, image in samples:
            for name, data in ((f"{key}.png", image), (f"{key}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def captioned(path: Path, captions: Sequence[str]) -> str:
    """Write a tar of captions, each beside one picture."""
    image = png()
    return make_shard(path, [(f"k{i:05d}", text, image) for i, text in enumerate(captions)])

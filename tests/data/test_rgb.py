"""Pictures as they are shown: transparency on white, upright, without Pillow's warnings."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipfast.data import rgb
from clipfast.data.plain import plain_size
from clipfast.data.prepare import prepare
from clipfast.data.rgb import open_rgb, to_rgb
from tests.data.test_loader import encoded, picture, rotated_exif

pytestmark = pytest.mark.filterwarnings("error")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(to_rgb(image)).astype(int)


def palette_png() -> bytes:
    """Black, red and blue columns; black is clear, red is half clear, by a table of bytes."""
    image = Image.fromarray(np.array([[0, 1, 2]] * 3, np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    return encoded(image, "PNG", transparency=bytes([0, 128, 255]))


def grey_png() -> bytes:
    """16 bits, whose grey 257 is the transparent one."""
    grey = np.array([[0, 257, 256, 65535]], np.uint16)
    return encoded(Image.fromarray(grey), "PNG", transparency=257)


def test_to_rgb_lays_transparency_on_white_and_scales_16_bits():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    assert np.asarray(to_rgb(clear)).min() == 255
    assert abs(np.asarray(to_rgb(half)).astype(int) - 127).max() <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info["transparency"] = 0
    assert np.asarray(to_rgb(palette)).min() == 255
    deep = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 1, 255]
    assert abs(pixels(picture("CMYK")) - pixels(picture())).mean() < 1
    with pytest.raises(ValueError, match="floats"):
        to_rgb(Image.new("F", (2, 2)))
    with pytest.raises(ValueError, match="exceeds 16 bits"):
        to_rgb(Image.new("I", (2, 2), 70000))


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (palette_png(), [(255, 255, 255), (255, 127, 127), (0, 0, 255)]),
        (grey_png(), [(0,) * 3, (255,) * 3, (1,) * 3, (255,) * 3]),
    ],
    ids=["palette", "16 bits"],
)
def test_transparency_by_a_table_is_laid_on_white_without_a_warning(data, row):
    assert not plain_size(data)
    flat = Image.open(io.BytesIO(prepare(data).tobytes()))
    for image in (open_rgb(data), flat):
        assert image.mode == "RGB"
        assert [image.getpixel((x, 0)) for x in range(len(row))] == row


def test_open_rgb_turns_a_picture_upright():
    data = encoded(picture(), "PNG", exif=rotated_exif())
    assert open_rgb(data).size == (40, 60)
    assert open_rgb(data) == ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("size", [(7, 5), (40, 1), (1, 33)])
def test_strips_of_a_clear_picture_are_those_of_the_whole(mode, size, monkeypatch):
    rng = np.random.default_rng(0)
    channels = {"RGBA": (4,), "LA": (2,), "P": ()}[mode]
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], *channels), np.uint8), mode)
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        image.info["transparency"] = rng.integers(0, 256, 256, np.uint8).tobytes()
    layer = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", size, "white"), layer).convert("RGB")
    for pixels_of_a_strip in (1, 21, 1 << 20):
        monkeypatch.setattr(rgb, "_PIXELS_OF_A_STRIP", pixels_of_a_strip)
        assert to_rgb(image) == whole


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak")
def test_a_large_clear_picture_is_held_twice_at_most():
    file = io.BytesIO()
    Image.new("RGBA", (3000, 2000), (10, 20, 30, 128)).save(file, "PNG")
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes(status, "VmRSS")
    open_rgb(file.getvalue())
    assert 1024 * (_kilobytes(status, "VmHWM") - before) < 3 * 4 * 3000 * 2000


def _kilobytes(status: Path, name: str) -> int:
    return int(status.read_text().split(f"{name}:")[1].split()[0])

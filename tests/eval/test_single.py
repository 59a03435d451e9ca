"""Images one by one: the same pixels as the decoder's."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipfast
from clipfast.eval.decoding import SetDecoder
from clipfast.eval.models import load_model
from clipfast.preprocessing import MEAN, STD
from tests.eval.test_encoding import Files
from tests.eval.tiny import SIZE, picture, tiny_model, tiny_weights


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Back to 0..255, ``[S, S, 3]``."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return ((pixels * std + mean) * 255).permute(1, 2, 0)


def odd_files() -> list[bytes]:
    """Transparent, grey, palette, turned, tall, wide, smaller than the model's input."""
    rng = np.random.default_rng(0)
    files = [picture(1, 200, 90), picture(2, 33, 150, "JPEG"), picture(3, 9, 7)]
    clear = Image.open(io.BytesIO(picture(4))).convert("RGBA")
    clear.putalpha(Image.fromarray(rng.integers(0, 256, (45, 67), dtype=np.uint8)))
    turned = Image.open(io.BytesIO(picture(5)))
    exif = Image.Exif()
    exif[0x112] = 6
    for image, options in (
        (clear, {"format": "PNG"}),
        (turned.convert("L"), {"format": "PNG"}),
        (turned.convert("P"), {"format": "PNG"}),
        (turned, {"format": "JPEG", "exif": exif, "quality": 95}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, **options)
        files.append(buffer.getvalue())
    return files


@pytest.mark.needs("nvidia.dali")
def test_preprocess_is_within_3_of_255_of_the_decoder():
    files = odd_files()
    decoder = SetDecoder(Files(files), range(len(files)), 4, SIZE, torch.device("cpu"), 2)
    prepare = clipfast.preprocess(tiny_model())
    for file, crop in zip(files, torch.cat(list(decoder)), strict=True):
        pixels = prepare(file)
        assert pixels.shape == (3, SIZE, SIZE)
        assert pixels.dtype == torch.float32
        assert (to_bytes(pixels) - crop).abs().max() <= 3
    assert not decoder.unreadable


def test_preprocess_takes_every_kind_of_image(tmp_path):
    file = picture(0)
    path = tmp_path / "a.png"
    path.write_bytes(file)
    image = Image.open(io.BytesIO(file))
    array = np.array(image)
    tensor = torch.from_numpy(array)
    prepare = clipfast.preprocess(tiny_model())
    expected = prepare(file)
    assert expected.std() > 0.1
    for kind in (path, str(path), image, array, tensor, tensor.permute(2, 0, 1), bytearray(file)):
        assert torch.equal(prepare(kind), expected)


def test_preprocess_takes_the_square_in_the_middle():
    pixels = torch.zeros(SIZE, 3 * SIZE, 3, dtype=torch.uint8)
    pixels[:, SIZE : 2 * SIZE] = 200
    found = to_bytes(clipfast.preprocess(tiny_model())(pixels))
    assert found.numpy() == pytest.approx(200, abs=1e-3)


def test_preprocess_follows_the_weights(tmp_path):
    loaded = load_model(None, tiny_weights(tmp_path))
    file = picture(0)
    assert torch.equal(clipfast.preprocess(loaded)(file), clipfast.preprocess(loaded.model)(file))


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (b"no image", ValueError, "the image cannot be read: image is of no format"),
        (picture(0)[:200], ValueError, "the image cannot be read: image is broken"),
        (torch.zeros(3, 4, 4), TypeError, r"uint8, 0 to 255; got torch.float32"),
        (torch.zeros(4, 4, dtype=torch.uint8), ValueError, r"or \[3, H, W\]; got \[4, 4\]"),
        (torch.zeros(0, 4, 3, dtype=torch.uint8), ValueError, r"got \[0, 4, 3\]"),
        (7, TypeError, "got 7"),
    ],
)
def test_preprocess_says_what_is_no_image(image, error, words):
    with pytest.raises(error, match=words):
        clipfast.preprocess(tiny_model())(image)


def test_preprocess_names_a_file_that_is_not_there():
    with pytest.raises(OSError, match=r"nowhere\.png"):
        clipfast.preprocess(tiny_model())(Path("nowhere.png"))

"""JPEGs decoded at a part of their size: which, how near to the whole, and what breaks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipfast.data import EvalLoader, TrainLoader, decode
from clipfast.data.plain import plain_size
from clipfast.data.scaled import decode_scaled, factor_of
from clipfast.preprocessing import MEAN, STD
from tests.data.test_loader import encoded, picture, rotated_exif, take, write_shard

SIZE = 32


@pytest.mark.parametrize(
    ("size", "least_side", "factor"),
    [((448, 900), 224, 2), ((447, 900), 224, 1), ((900, 896), 224, 4), ((1792, 1793), 224, 8),
     ((99999, 9999), 224, 8), ((512, 512), 224 / 0.9, 2), ((8, 8), 9, 1)],
)  # fmt: skip
def test_scaled_leaves_the_short_side_large_enough(size, least_side, factor):
    assert factor_of(size, least_side) == factor


@pytest.mark.parametrize("size", [(512, 300), (257, 301), (64, 999)])
def test_scaled_size_is_that_of_the_factor_rounded_up(size):
    data = encoded(picture(size=size), "JPEG")
    for factor in (2, 4, 8):
        least_side = min(size) / factor
        made = Image.open(io.BytesIO(decode_scaled(data, size, least_side).bitmap.tobytes()))
        assert made.size == tuple(-(-side // factor) for side in size)
        assert min(made.size) >= least_side


def test_scaled_leaves_other_formats_and_small_pictures_alone():
    assert decode_scaled(encoded(picture(size=(99, 99)), "PNG"), (99, 99), 9) is None
    assert decode_scaled(encoded(picture(size=(99, 99)), "JPEG"), (99, 99), 50) is None


def test_scaled_leaves_turned_pictures_alone_whose_last_pixels_would_come_first():
    turned = encoded(picture(size=(321, 200)), "JPEG", exif=rotated_exif())
    assert decode_scaled(turned, (321, 200), 50) is None
    assert decode_scaled(encoded(picture(size=(321, 200)), "JPEG"), (321, 200), 50) is not None


def test_scaled_leaves_pictures_alone_that_pillow_refuses(monkeypatch):
    data = encoded(picture(size=(99, 99)), "JPEG")
    assert decode_scaled(data, (99, 99), 9) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_scaled(data, (99, 99), 9) is None


@pytest.mark.parametrize("size", [(1793, 1793), (1000, 505), (515, 1023)])
@pytest.mark.parametrize("compiled", [True, False], ids=["ours", "DALI"])
def test_train_loader_scaled_stretches_no_picture(tmp_path, monkeypatch, size, compiled):
    # Sides that are no multiples of 8, and stripes that show a shift of a part of a pixel.
    monkeypatch.setattr(decode, "is_compiled", lambda: compiled)
    x, y = np.arange(size[0]), np.arange(size[1])[:, None]
    stripes = 127 + 50 * np.sin(2 * np.pi * x / 97) + 50 * np.sin(2 * np.pi * y / 89)
    image = Image.fromarray(stripes.astype(np.uint8)).convert("RGB")
    least = min(size) // 8 - 1
    shard = write_shard(tmp_path / "0.tar", [("jpg", encoded(image, "JPEG", quality=95), "a")])
    exact, scaled = (
        next(iter(TrainLoader(shard, least, 1, scale=(1.0, 1.0), decode=way))).images
        for way in ("exact", "scaled")
    )
    levels = (exact - scaled).abs() * torch.tensor(STD)[:, None, None] * 255
    assert 0 < levels.mean() < 1
    assert levels.max() < 8


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_scaled_is_upright_and_near_the_whole(mode):
    data = encoded(picture(mode, (320, 200)), "JPEG", quality=95, exif=rotated_exif())
    assert plain_size(data) == (320, 200)
    made = Image.open(io.BytesIO(decode_scaled(data, (320, 200), 50).bitmap.tobytes()))
    assert (made.mode, made.size) == ("RGB", (50, 80))
    whole = picture(mode, (320, 200)).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    difference = np.abs(np.asarray(made, float) - np.asarray(whole.resize(made.size)))
    # The picture has edges, where its levels begin anew.
    assert difference.mean() < 4


def test_train_loader_scaled_is_near_exact_on_large_jpegs_and_equal_on_others(tmp_path):
    smooth = picture(size=(300, 280))
    samples = [
        ("jpg", encoded(smooth, "JPEG", quality=95), "large"),
        ("jpg", encoded(picture(size=(60, 50)), "JPEG"), "small"),
        ("png", encoded(smooth, "PNG"), "no JPEG"),
    ]
    shard = write_shard(tmp_path / "0.tar", samples)
    exact, scaled = (
        next(iter(TrainLoader(shard, SIZE, 3, shuffle=False, decode=decode)))
        for decode in ("exact", "scaled")
    )
    assert torch.equal(exact.images[1:], scaled.images[1:])
    assert torch.equal(exact.tokens, scaled.tokens)
    levels = (exact.images[0] - scaled.images[0]).abs() * torch.tensor(STD)[:, None, None] * 255
    assert 0 < levels.mean() < 2
    # Evaluations know no such option.
    whole = next(iter(EvalLoader(shard, SIZE, 3)))
    assert whole.images.shape == exact.images.shape
    with pytest.raises(TypeError):
        EvalLoader(shard, SIZE, 3, decode="scaled")


def test_train_loader_scaled_gives_the_same_bits_on_any_number_of_threads(tmp_path):
    samples = [
        ("jpg", encoded(picture(size=(200 + 31 * i, 300 - 17 * i)), "JPEG"), "a caption")
        for i in range(9)
    ]
    shard = write_shard(tmp_path / "0.tar", samples)
    one, three = (
        [batch.images for batch in take(TrainLoader(shard, SIZE, 4, threads=n, decode="scaled"), 4)]
        for n in (1, 3)
    )
    assert all(map(torch.equal, one, three))


def test_train_loader_scaled_names_or_skips_a_broken_picture(tmp_path):
    whole = encoded(picture(size=(400, 300)), "JPEG")
    samples = [("jpg", whole, "fine")] * 5 + [("jpg", whole[: len(whole) // 2], "broken")]
    shard = write_shard(tmp_path / "0.tar", samples)
    with pytest.raises(ValueError, match=r"'000005' of shard .*0\.tar.*clipfast\.data\.index"):
        take(TrainLoader(shard, SIZE, 6, decode="scaled"), 1)
    loader = TrainLoader(shard, SIZE, 3, decode="scaled", on_error="skip")
    take(loader, 4)
    assert [each.row for each in loader.skipped] == [5]


def test_train_loader_refuses_an_unknown_way_to_decode(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [("png", encoded(picture(), "PNG"), "a")])
    with pytest.raises(ValueError, match="decode must be 'exact' or 'scaled'; got 'fast'"):
        TrainLoader(shard, SIZE, 1, decode="fast")


def test_scaled_pixels_have_the_mean_of_the_whole(tmp_path):
    # Noise: what is left out are high frequencies, not brightness.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    shard = write_shard(tmp_path / "0.tar", [("jpg", encoded(noise, "JPEG", quality=95), "a")])
    exact, scaled = (
        next(iter(TrainLoader(shard, SIZE, 1, scale=(1.0, 1.0), decode=decode))).images
        for decode in ("exact", "scaled")
    )
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    levels = [((images * std + mean) * 255).mean() for images in (exact, scaled)]
    assert abs(levels[0] - levels[1]) < 1

"""Corruptions: each damages more with its severity, and the same seed gives the same damage."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipfast.data.rgb import open_rgb
from clipfast.eval.sets import LabelledSet
from clipfast.eval.sets.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, corrupt, corrupted
from clipfast.eval.sets.corruptions.fields import convolve, disc, gaussian, plasma, streak
from tests.eval.tiny import picture


def pixels(seed=0, width=32, height=32):
    return np.asarray(open_rgb(picture(seed, width, height)))


def some_set(count=3, width=45, height=31):
    labels = np.arange(count) % 2
    return LabelledSet(
        "birds", "test", ("a", "b"), ("{c}",), labels, lambda i: picture(i, width, height)
    )


def test_there_are_fifteen_in_four_groups():
    assert len(CORRUPTIONS) == 15
    assert {group: len(names) for group, names in GROUPS.items()} == {
        "noise": 3,
        "blur": 4,
        "weather": 4,
        "digital": 4,
    }
    assert [name for names in GROUPS.values() for name in names] == list(CORRUPTIONS)


@pytest.mark.parametrize("size", [(32, 32), (45, 31), (97, 130)], ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupt_damages_more_with_each_severity(name, size):
    images = [pixels(seed, *size) for seed in range(4)]
    errors = []
    for severity in (0, *SEVERITIES):
        damaged = [corrupt(x, name, severity, image=i) for i, x in enumerate(images)]
        pairs = list(zip(images, damaged, strict=True))
        assert all(y.dtype == np.uint8 and y.shape == x.shape for x, y in pairs)
        errors.append(np.mean([np.square(x.astype(float) - y).mean() for x, y in pairs]))
    assert errors[0] == 0
    assert (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 2)], ids=str)
@pytest.mark.parametrize("value", [0, 255])
def test_corrupt_takes_what_is_tiny_black_or_white(name, shape, value):
    flat = np.full((*shape, 3), value, np.uint8)
    for severity in SEVERITIES:
        found = corrupt(flat, name, severity)
        assert found.shape == flat.shape
        if name.endswith(("blur", "transform", "pixelate", "contrast")):
            # What only moves or mixes pixels keeps a flat picture.
            np.testing.assert_array_equal(found, flat)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupt_depends_on_seed_and_image_alone(name):
    x = pixels()
    first = corrupt(x, name, 3, seed=5, image=7)
    np.testing.assert_array_equal(first, corrupt(x, name, 3, seed=5, image=7))
    is_random = name not in (
        "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"
    )  # fmt: skip
    for other in ({"seed": 6, "image": 7}, {"seed": 5, "image": 8}):
        assert (first != corrupt(x, name, 3, **other)).any() == is_random


def test_corrupt_leaves_its_input_alone():
    x = pixels()
    before = x.copy()
    for name in CORRUPTIONS:
        for severity in (0, 5):
            corrupt(x, name, severity)[:] = 0
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("name", "severity", "words"),
    [
        ("fogg", 3, "no corruption 'fogg'. Did you mean 'fog'"),
        ("fog", 6, "severity of fog must be 1 to 5, or 0 for none; got 6"),
        ("fog", -1, "got -1"),
        ("fog", True, "got True"),
        ("fog", 2.5, "got 2.5"),
    ],
)
def test_corrupt_refuses_what_is_not_known(name, severity, words):
    with pytest.raises(ValueError, match=words):
        corrupt(pixels(), name, severity)
    with pytest.raises(ValueError, match=words):
        corrupted(some_set(), name, severity)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (4, 4, 3)], ids=str)
def test_corrupt_refuses_other_pixels(shape):
    odd = np.zeros(shape, np.float32 if shape == (4, 4, 3) else np.uint8)
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[H, W, 3\] and not empty"):
        corrupt(odd, "fog", 1)


def test_corrupted_is_the_set_with_damaged_images():
    images = some_set()
    foggy = corrupted(images, "fog", 3, seed=2)
    assert foggy.name == "birds-c/fog-3"
    assert foggy.classnames == images.classnames
    for i in range(len(images)):
        found = np.asarray(open_rgb(foggy.encoded(i)))
        np.testing.assert_array_equal(found, corrupt(pixels(i, 45, 31), "fog", 3, seed=2, image=i))
    unhurt = corrupted(images, "fog", 0)
    np.testing.assert_array_equal(open_rgb(unhurt.encoded(1)), pixels(1, 45, 31))


def test_corrupted_shrinks_what_is_larger_than_the_model_sees():
    images = some_set(1, 200, 90)
    assert open_rgb(corrupted(images, "fog", 3, at_most=32).encoded(0)).size == (32, 32)
    assert open_rgb(corrupted(images, "fog", 3, at_most=90).encoded(0)).size == (200, 90)


@pytest.mark.parametrize(
    ("cut", "words"), [(0, "0 zero bytes"), (4, "it is 4 bytes"), (300, "truncated")]
)
def test_corrupted_says_why_an_image_does_not_decode(cut, words):
    broken = replace(some_set(), encoded=lambda i: picture(0)[:cut])
    with pytest.raises(ValueError, match=words):
        corrupted(broken, "fog", 3).encoded(0)


@pytest.mark.parametrize("make", [disc, gaussian, lambda s: streak(s, 0.3)])
@pytest.mark.parametrize("size", [0.4, 1.0, 3.3])
def test_kernels_keep_the_mean_and_the_place(make, size):
    kernel = make(size)
    assert kernel.sum() == pytest.approx(1)
    steps = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum(0) @ steps == pytest.approx(0, abs=1e-12)
    assert kernel.sum(1) @ steps == pytest.approx(0, abs=1e-12)


def test_convolve_equals_scipy():
    from scipy.ndimage import convolve as expected

    x = np.random.default_rng(0).random((13, 8, 3))
    kernel = np.random.default_rng(1).random((5, 5))
    planes = [expected(x[..., c], kernel, mode="reflect") for c in range(3)]
    np.testing.assert_allclose(convolve(x, kernel), np.stack(planes, 2), atol=1e-12)


def test_convolve_with_a_wide_kernel_keeps_a_small_picture():
    flat = np.full((2, 3, 3), 0.25)
    np.testing.assert_allclose(convolve(flat, disc(6.0)), flat)


def test_plasma_is_smoother_where_it_shall_be():
    rough, soft = (plasma(60, 41, r, np.random.default_rng(0)) for r in (0.8, 0.3))
    assert rough.shape == soft.shape == (60, 41)
    assert (soft.min(), soft.max()) == (0, 1)
    assert np.abs(np.diff(soft, axis=0)).mean() < np.abs(np.diff(rough, axis=0)).mean()


def test_jpeg_severities_are_qualities():
    x = pixels(3, 64, 64)
    sizes = []
    for severity in SEVERITIES:
        file = io.BytesIO()
        Image.fromarray(corrupt(x, "jpeg_compression", severity)).save(file, "PNG")
        sizes.append(len(file.getvalue()))
    assert sizes[-1] < sizes[0]

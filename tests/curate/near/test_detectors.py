"""Detectors: unit vectors, the hash against a few plain lines, and what no detector is."""

import numpy as np
import pytest
from PIL import Image

from clipfast.curate.near.detectors import open_detector
from tests.eval.tiny import tiny_weights

pytestmark = pytest.mark.needs("PIL")


def smooth(seed: int, height: int = 45, width: int = 67) -> np.ndarray:
    """A picture of soft colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def plain_hash(image: np.ndarray) -> np.ndarray:
    """The sum of the DCT as it is written in books."""
    grey = np.asarray(Image.fromarray(image).convert("L").resize((32, 32), 1), np.float64)
    at = np.arange(32)
    slow = [
        [
            (
                grey
                * np.cos(np.pi * (2 * at[:, None] + 1) * u / 64)
                * np.cos(np.pi * (2 * at[None, :] + 1) * v / 64)
            ).sum()
            for v in range(8)
        ]
        for u in range(8)
    ]
    return np.array(slow).ravel() > np.median(slow)


def test_hash_is_the_median_of_slow_waves():
    images = [smooth(0), smooth(1, 9, 200), smooth(2, 1, 1), smooth(3)]
    found = open_detector("hash").embed(images)
    assert found.dtype == np.float32
    assert found.shape == (4, 64)
    for row in (0, 1, 3):
        assert ((found[row] > 0) == plain_hash(images[row])).all()
    different = int(((found[0] > 0) != (found[3] > 0)).sum())
    assert found[0] @ found[3] == 1 - 2 * different / 64
    assert (found.astype(np.float16) == found).all()


def test_hash_of_one_colour_does_not_depend_on_the_colour():
    hashes = open_detector("hash").embed([np.full((8, 8, 3), v, np.uint8) for v in (1, 77, 255)])
    assert (hashes == hashes[0]).all()


def test_hash_is_near_for_a_smaller_picture_and_far_for_another():
    image = smooth(0, 128, 128)
    smaller = np.asarray(Image.fromarray(image).resize((50, 50)))
    one, near, far = open_detector("hash").embed([image, smaller, smooth(5, 128, 128)])
    assert one @ near > 0.9
    assert one @ far < 0.7


@pytest.mark.needs("safetensors", "ftfy")
def test_clip_gives_unit_rows_for_pictures_of_any_size(tmp_path):
    path = tiny_weights(tmp_path)
    detector = open_detector(f"clip:{path}")
    found = detector.embed([smooth(0), smooth(0, 90, 134), smooth(1, 7, 3)])
    assert detector.name == "clip"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2]
    other = open_detector(f"clip:{tiny_weights(tmp_path, seed=1)}")
    assert other.digest != detector.digest
    assert open_detector(f"clip:{path}") is detector


def test_open_detector_names_what_there_is():
    with pytest.raises(ValueError, match=r"no detector 'phash': give hash, clip:FILE"):
        open_detector("phash")

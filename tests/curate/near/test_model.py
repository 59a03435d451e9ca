"""The trained detector's two looks, and the vector of pixels, against a few plain lines."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import clipfast.models.detectors  # noqa: F401  # makes near-tiny known
from clipfast.curate.near.looks import products_of_pairs, split
from clipfast.curate.near.model import PIXELS, NearModel
from clipfast.curate.near.pixels import pixel_vectors
from clipfast.models import create_model
from tests.curate.near.test_detectors import smooth

pytestmark = pytest.mark.needs("PIL", "ftfy")


def test_products_of_pixel_vectors_are_the_correlation_of_small_pictures():
    rng = np.random.default_rng(0)
    # In blocks of eight, colours lose nothing at 8 x 8 points.
    squares = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    found = pixel_vectors(torch.from_numpy(squares)).double().numpy()
    assert found.shape == (5, 384)
    flat = squares[:, ::8, ::8].astype(np.float64)
    flat = (flat - flat.mean((1, 2), keepdims=True)).reshape(5, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, flat @ flat.T, atol=1e-6)


def test_pixel_vectors_know_no_brightness_and_are_nothing_for_one_colour():
    dark = torch.from_numpy(smooth(3, 64, 64).copy()[None]) // 2
    one, other = pixel_vectors(torch.cat([dark, dark + 40]))
    torch.testing.assert_close(one, other)
    assert pixel_vectors(torch.full((1, 64, 64, 3), 7, dtype=torch.uint8)).abs().max() < 1e-3


@pytest.fixture(scope="module")
def detector() -> NearModel:
    torch.manual_seed(0)
    return NearModel(create_model("near-tiny"))


def test_looks_see_a_picture_with_and_without_its_margins(detector):
    bare = Image.fromarray(smooth(1, 90, 120))
    framed = ImageOps.expand(bare, 12, "white")
    squares = np.stack([detector.prepare(np.asarray(each)) for each in (bare, framed)])
    assert squares.shape == (2, 64, 64, 6)
    without, margined = squares[..., :3].astype(int), squares[..., 3:].astype(int)
    assert np.abs(without[0] - without[1]).mean() < 6
    assert np.abs(margined[0] - margined[1]).mean() > 20
    vectors = detector.encode(torch.from_numpy(squares)).numpy()
    alike = [products_of_pairs(look[:1], look[1:], 1)[0] for look in split(vectors, 2)]
    assert alike[0] > 0.97 > alike[1]
    assert products_of_pairs(vectors[:1], vectors[1:], 2)[0] == pytest.approx(alike[0])


def test_a_look_weighs_features_and_pixels(detector):
    squares = torch.from_numpy(np.stack([detector.prepare(smooth(seed)) for seed in range(3)]))
    vectors = torch.from_numpy(np.stack(split(detector.encode(squares).numpy(), 2)))
    for place, look in enumerate(squares.split(3, dim=3)):
        pixels = pixel_vectors(look)
        tower = vectors[place][:, :-384] / (1 - PIXELS) ** 0.5
        wanted = (1 - PIXELS) * tower @ tower.T + PIXELS * pixels @ pixels.T
        torch.testing.assert_close(vectors[place] @ vectors[place].T, wanted, atol=1e-5, rtol=0)

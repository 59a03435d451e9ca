"""clipfast.ops.resize: against float64 and Pillow, in every capability's build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clipfast.ops.extension import load_extension
from clipfast.ops.resize import is_compiled, plain, reference, resize_crops

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)
needs_extension = pytest.mark.needs("extension")
# Height, width, S: shrunk and enlarged, no multiples of a vector, hardly any pixels, strips.
SIZES = [(123, 252, 17), (64, 64, 64), (507, 123, 32), (7, 5, 31), (3, 2, 8), (1, 1, 3), (2, 99, 1)]
SQUARES = [(1.0, 0.5, 0.5), (0.93, 0.31, 0.77), (0.5, 0.0, 1.0), (1.0, 0.0, 0.0), (0.07, 0.4, 0.6)]


def picture(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)


def box_of(image: Tensor, square: tuple[float, float, float]) -> list[float]:
    height, width, _ = image.shape
    side = square[0] * min(height, width)
    return [(height - side) * square[1], (width - side) * square[2], side]


def run(function, images: list[Tensor], boxes: list[list[float]], size: int) -> Tensor:
    """Pixels in units of uint8."""
    out = torch.empty(len(images), size, size, 3)
    function(images, torch.tensor(boxes, dtype=torch.float64), MEAN, STD, out)
    return (out.double() * torch.tensor(STD) + torch.tensor(MEAN)) * 255


@pytest.mark.parametrize("function", [resize_crops, plain.resize_crops], ids=["operator", "plain"])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_resize_rounds_what_float64_gives(function, height, width, size):
    images = [picture(height, width) for _ in SQUARES]
    boxes = [box_of(*pair) for pair in zip(images, SQUARES, strict=True)]
    for pixels, image, box in zip(run(function, images, boxes, size), images, boxes, strict=True):
        exact = reference(image, box, size).clamp(0, 255)
        assert (pixels - exact).abs().max() < 0.502


@pytest.mark.parametrize(
    ("height", "width", "size"), [(123, 252, 17), (507, 123, 32), (40, 60, 80)]
)
def test_resize_equals_pillow_where_that_does_not_clip_between_its_passes(height, width, size):
    from PIL import Image

    image = picture(height, width) // 2 + 64
    for square in SQUARES[:4]:
        top, left, side = box_of(image, square)
        pixels = run(resize_crops, [image], [[top, left, side]], size)[0]
        box = (left, top, left + side, top + side)
        theirs = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BICUBIC, box)
        difference = np.abs(pixels.numpy() - np.asarray(theirs))
        assert difference.max() < 1.01, (square, difference.max())


@needs_extension
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_resize_of_every_capability_rounds_what_float64_gives(capability):
    order = ["default", "avx2", "avx512"]
    if order.index(capability) > order.index(load_extension().cpu_capability):
        pytest.skip(f"this processor has no {capability}")
    test = f"{Path(__file__).relative_to(ROOT)}::test_resize_rounds_what_float64_gives"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, "-k", "operator"],
        cwd=ROOT,
        env={**os.environ, "CLIPFAST_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout


def test_resize_reads_and_writes_nothing_outside():
    # Neighbours in memory that are not numbers, or that no picture has.
    pixels = torch.full((3, 31, 17, 3), 255, dtype=torch.uint8)
    pixels[1] = 0
    out = torch.full((3, 9, 9, 3), -7.0)
    boxes = torch.tensor([[14.0, 0.0, 17.0]], dtype=torch.float64)
    resize_crops([pixels[1]], boxes, (0, 0, 0), (1, 1, 1), out[1:2])
    assert (out[1] == 0).all()
    assert (out[[0, 2]] == -7).all()


def test_resize_of_no_picture_is_nothing():
    resize_crops([], torch.empty(0, 3, dtype=torch.float64), MEAN, STD, torch.empty(0, 4, 4, 3))


@needs_extension
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [torch.zeros(9, 9, 4, dtype=torch.uint8)]}, r"images \[H, W, 3\] uint8"),
        ({"images": [torch.zeros(9, 9, 3)]}, r"images \[H, W, 3\] uint8"),
        ({"images": []}, r"boxes \[0, 3\]"),
        ({"boxes": torch.tensor([[0.0, 0.0, 9.0]])}, "float64"),
        ({"boxes": torch.tensor([[0.0, 3.0, 9.0]]).double()}, "within 9 x 9"),
        ({"boxes": torch.tensor([[0.0, 0.0, 0.0]]).double()}, "side 0"),
        ({"boxes": torch.tensor([[0.0, float("nan"), 9.0]]).double()}, "left nan"),
        ({"out": torch.zeros(1, 4, 5, 3)}, r"out \[1, S, S, 3\]"),
        ({"mean": (0.5,)}, "3 channels"),
    ],
)
def test_resize_refuses_what_it_cannot_read(change, words):
    arguments = {
        "images": [torch.zeros(9, 9, 3, dtype=torch.uint8)],
        "boxes": torch.tensor([[0.0, 0.0, 9.0]]).double(),
        "mean": MEAN,
        "std": STD,
        "out": torch.zeros(1, 4, 4, 3),
        **change,
    }
    with pytest.raises(RuntimeError, match=words):
        resize_crops(**arguments)


@needs_extension
def test_resize_is_compiled_where_the_extension_is():
    assert is_compiled()


def test_resize_fits_its_declaration():
    image = picture(9, 12)
    boxes = torch.tensor([[0.0, 1.0, 8.0]]).double()
    torch.library.opcheck(
        torch.ops.clipfast.resize_crops_.default,
        ([image], boxes, list(MEAN), list(STD), torch.zeros(1, 4, 4, 3)),
    )

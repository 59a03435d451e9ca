"""A small model and small sets of images for tests of evaluation."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipfast.models import CLIP, create_model, export

SIZE = 32


def tiny_model(name: str = "ViT-tiny", seed: int = 0) -> CLIP:
    """A model of two small towers, in evaluation mode."""
    torch.manual_seed(seed)
    size = {"patch_size": 8, "vision_layers": 2} if name == "ViT-tiny" else {}
    return create_model(name, image_size=SIZE, text_layers=1, **size).eval()


def tiny_weights(folder: Path, name: str = "ViT-tiny", seed: int = 0) -> Path:
    """The file of such a model."""
    path = folder / f"{name}-{seed}.safetensors"
    export(tiny_model(name, seed), path)
    return path


def picture(seed: int, width: int = 67, height: int = 45, form: str = "PNG") -> bytes:
    """A smooth picture, as a file."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def write_pictures(folder: Path, counts: dict[str, int]) -> Path:
    """A folder with a subfolder per class."""
    seed = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(picture(seed))
            seed += 1
    return folder

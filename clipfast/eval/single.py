"""Images one by one, as a model reads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps, UnidentifiedImageError
from PIL.Image import Image
from torch import Tensor

from clipfast.arguments import WrongKindError, shown
from clipfast.data.rgb import open_rgb, to_rgb
from clipfast.data.unreadable import why_broken, why_unreadable
from clipfast.eval.encoding import check_preprocessing
from clipfast.eval.models import LoadedModel
from clipfast.models import CLIP
from clipfast.ops.resize import resize_crops
from clipfast.preprocessing import Preprocessing


def preprocess(model: CLIP | LoadedModel) -> Callable[[Any], Tensor]:
    """The function that makes a model's input of an image.

        prepare = clipfast.preprocess(model)
        features = model.encode_image(prepare("cat.jpg")[None])

    It does what the loaders do: upright, RGB, transparency on white, the square in the middle,
    resized once with an antialiased bicubic filter, normalised.

    Args:
        model: which images are for; of a ``LoadedModel`` with the preprocessing of its weights.

    Returns:
        A function of one image: a Pillow image; a tensor or array uint8 ``[H, W, 3]`` or
        ``[3, H, W]``; a path; or the bytes of a file. It returns ``[3, S, S]`` float32 on the CPU.
        It raises ``ValueError`` where the image cannot be read, and ``TypeError`` for another kind.

    Raises:
        ValueError: the model's images are prepared in a way that is not known here.
    """
    if isinstance(model, LoadedModel):
        wanted = check_preprocessing(model.preprocessing, model.model)
    else:
        wanted = Preprocessing(model.config.vision.image_size)
    return lambda image: _prepared(_pixels(image), wanted)


def _prepared(pixels: Tensor, wanted: Preprocessing) -> Tensor:
    height, width, _ = pixels.shape
    side = min(height, width)
    box = torch.tensor([[(height - side) / 2, (width - side) / 2, side]], dtype=torch.float64)
    out = torch.empty(1, wanted.image_size, wanted.image_size, 3)
    resize_crops([pixels.contiguous()], box, wanted.mean, wanted.std, out)
    return out[0].permute(2, 0, 1)


def _pixels(image: Any) -> Tensor:
    """``[H, W, 3]`` uint8."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return _from_bytes(path.read_bytes(), str(path))
    if isinstance(image, bytes | bytearray | memoryview):
        return _from_bytes(bytes(image), "the image")
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, Image):
        return _from_pillow(image)
    raise WrongKindError(
        "an image is a Pillow image, a tensor or array uint8 [H, W, 3] or [3, H, W], a path, or "
        f"the bytes of a file; got {shown(image)}"
    )


def _from_bytes(data: bytes, name: str) -> Tensor:
    try:
        return _from_pillow(open_rgb(data))
    except UnidentifiedImageError:
        raise ValueError(f"{name} cannot be read: {why_unreadable(data)}") from None
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{name} cannot be read: {why_broken(data, error)}") from error


def _from_pillow(image: Image) -> Tensor:
    rgb = to_rgb(ImageOps.exif_transpose(image))
    return torch.from_numpy(np.array(rgb))


def _from_tensor(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8:
        raise WrongKindError(
            f"a tensor of pixels is uint8, 0 to 255; got {image.dtype}: pass bytes, or call the "
            "model with what is normalised already"
        )
    if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        image = image.permute(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3 or not image.numel():
        raise ValueError(f"a tensor of pixels is [H, W, 3] or [3, H, W]; got {list(image.shape)}")
    return image.cpu()

"""What a contender's batch must be before it is timed."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch
from PIL import Image

from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.data.contenders import Contender, Setting, captions_of, train_loader
from benchmarks.peers import import_open_clip
from clipfast.data.reader import ShardReader
from clipfast.data.resizing import boxes_of
from clipfast.data.rgb import open_rgb
from clipfast.preprocessing import MEAN, STD
from clipfast.tokenizer import CONTEXT_LENGTH

# Mean difference of a picture from Pillow's, in levels of 255: JPEG decoders round differently. A
# GPU's decoder interpolates colours another way.
LIMITS = {"cpu": 0.6, "cuda": 2.0}
SCALED_LIMIT = 6.0


def check(contender: Contender, setting: Setting) -> dict[str, float]:
    """Compare the first batch with Pillow's pixels and OpenCLIP's tokens.

    Args:
        contender: Whose.
        setting: What it is given.

    Returns:
        ``error_pixels``, the largest mean difference of a picture, pixels in [0, 1], and
        ``mean_difference``, that of the batch in levels of 255; for a peer, which is Pillow itself,
        nothing.

    Raises:
        CheckFailed: The batch is wrong.
    """
    if contender.is_ours:
        return _check_ours(setting, is_scaled=contender.key == "clipfast-scaled")
    with closing(contender.open(setting)) as batches:
        images, tokens = next(batches)
    size = setting.image_size
    if images.shape != (setting.batch, 3, size, size) or not images.isfinite().all():
        raise CheckFailed(f"images {tuple(images.shape)}, or not finite")
    if tokens is not None and tokens.shape != (setting.batch, CONTEXT_LENGTH):
        raise CheckFailed(f"tokens {tuple(tokens.shape)}")
    return {}


def _check_ours(setting: Setting, is_scaled: bool) -> dict[str, float]:
    loader = train_loader(setting, "scaled" if is_scaled else "exact")
    with closing(iter(loader)) as batches:
        batch = next(batches)
    places = list(zip(batch.shard.tolist(), batch.row.tolist(), strict=True))
    crops = loader.order.crops(0, 0, setting.batch)
    low, high = loader.scale
    crops[:, 0] = low + (high - low) * crops[:, 0]
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    pixels = ((batch.images.float().cpu().permute(0, 2, 3, 1) * std + mean) * 255).numpy()
    means: list[float] = []
    with closing(ShardReader(setting.shards)) as reader:
        for i, place in enumerate(places):
            expected = _by_pillow(reader.image(*place), crops[i : i + 1], setting.image_size)
            means.append(float(np.abs(pixels[i] - expected).mean()))
    limit = SCALED_LIMIT if is_scaled else LIMITS[torch.device(setting.device).type]
    worst = max(means)
    if not worst <= limit:
        raise CheckFailed(f"a picture differs from Pillow's by {worst:.2f} levels in the mean")
    tokens = import_open_clip().tokenize(captions_of(setting, places))
    ours = batch.tokens.cpu()
    if not (torch.equal(ours, tokens[:, : ours.shape[1]]) and not tokens[:, ours.shape[1] :].any()):
        raise CheckFailed("tokens differ from OpenCLIP's")
    return {"error_pixels": worst / 255, "mean_difference": float(np.mean(means))}


def _by_pillow(data: bytes, crop: np.ndarray, size: int) -> np.ndarray:
    image = open_rgb(data)
    cut = np.append(crop, np.ones((1, 2), crop.dtype), axis=1)
    ((top, left, side),) = boxes_of(cut, [(image.height, image.width)])
    box = (left, top, min(left + side, image.width), min(top + side, image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))

"""Floating-point operations of a step of the plain model."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parts.common import peers
from benchmarks.parts.step.contenders import Case
from benchmarks.peers import import_open_clip


def model_flop(case: Case) -> int:
    """FLOP of a step of the plain model: forward and backward, tokens padded, nothing recomputed.

    Counted on OpenCLIP's own model without memory, where every product of a batch of two is seen,
    and scaled to the batch; the loss adds its 6 B^2 D.
    """
    open_clip = import_open_clip()
    config = peers.open_clip_config(case.model, **dict(case.overrides))
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
        size = config["vision_cfg"]["image_size"]
        images = torch.empty(2, 3, size, size)
        tokens = torch.zeros(2, model.context_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            image_features, text_features, _ = model(images, tokens)
            (image_features.sum() + text_features.sum()).backward()
    towers = counter.get_total_flops() * case.batch // 2
    return towers + 6 * case.batch**2 * config["embed_dim"]

"""Small OpenCLIP models, for the tests of ``patch_open_clip``."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tests.peers import import_open_clip

CONTEXT, VOCABULARY, WIDTH, BATCH = 12, 100, 64, 5
SHRUNK_TEXT = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2}
SHRUNK_TEXT |= {"layers": 2, "hf_tokenizer_name": None, "tokenizer_kwargs": None}
SHRUNK_VIT = {"layers": 2, "width": WIDTH, "head_width": 32, "patch_size": 8, "image_size": 16}
SHRUNK_RESNET = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
LOSS = "open_clip.loss.ClipLoss"


def build(config: dict[str, Any], **options: Any) -> nn.Module:
    """A model as ``open_clip.create_model`` would build it, its gains and biases not trivial."""
    open_clip = import_open_clip()
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.coca_model.CoCa
    torch.manual_seed(0)
    model = kind(**config, **options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "attn" in name:
                parameter.mul_(3)  # scores that differ
    return model


def tiny(vision: dict[str, Any] | None = None, custom: bool = False, **text: Any) -> nn.Module:
    """A shrunk CLIP with these changes."""
    config = {"embed_dim": 32, "quick_gelu": True, "custom_text": custom}
    config["vision_cfg"] = dict(vision or SHRUNK_VIT)
    return build(config | {"text_cfg": SHRUNK_TEXT | text})

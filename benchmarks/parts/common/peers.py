"""Builds OpenCLIP's models and ours with the same weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from benchmarks.peers import import_open_clip
from clipfast.models import CLIP, create_model, list_models

# The image tower's fields under our flat names, where OpenCLIP's differ from them.
_VISION_FIELDS = {"vision_layers": "layers", "vision_width": "width"}
_VISION_FIELDS |= {"vision_head_width": "head_width"}
_TEXT_FIELDS = {"text_layers": "layers", "text_width": "width"}


def open_clip_version() -> str:
    """Its version, as in the names of rows."""
    version: str = import_open_clip().__version__
    return version


def open_clip_name(name: str) -> str:
    """The paper's model under OpenCLIP's name: the one with QuickGELU, which the paper's have."""
    return name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def open_clip_config(name: str, **overrides: int) -> dict[str, Any]:
    """OpenCLIP's configuration of one of our models.

    Args:
        name: One of :func:`clipfast.models.list_models`; the two tiny models are described to
            OpenCLIP in its own terms.
        overrides: ``image_size``, ``vision_layers``, ``vision_width``, ``vision_head_width``,
            ``patch_size``, ``text_layers``, ``context_length``, ``vocab_size``.

    Returns:
        The keyword arguments of ``open_clip.model.CLIP``.
    """
    if name.endswith("-tiny"):
        config = _tiny_config(name)
    else:
        config = copy.deepcopy(import_open_clip().get_model_config(open_clip_name(name)))
    for key, value in overrides.items():
        if key in _TEXT_FIELDS or key in ("context_length", "vocab_size"):
            config["text_cfg"][_TEXT_FIELDS.get(key, key)] = value
        else:
            config["vision_cfg"][_VISION_FIELDS.get(key, key)] = value
    return config


def _tiny_config(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        ours = create_model(name).config
    vision = dict(vars(ours.vision))
    vision["layers"] = list(vision["layers"]) if name.startswith("RN") else vision["layers"]
    text = {
        "context_length": ours.text.context_length,
        "vocab_size": ours.text.vocab_size,
        "width": ours.text.width,
        "heads": ours.text.heads,
        "layers": ours.text.layers,
    }
    return {
        "embed_dim": ours.embed_dim,
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def build_pair(
    name: str, *, device: str | torch.device = "cpu", seed: int = 0, **overrides: int
) -> tuple[CLIP, nn.Module]:
    """Our model and OpenCLIP's with the same random weights, each with tensors of its own.

    Gains and biases are moved off their starting values: with the zero gains that a ResNet's
    blocks start with, most gradients are zero and a comparison of them says little.

    Args:
        name: One of :func:`clipfast.models.list_models`.
        device: Where both are.
        seed: Of the weights.
        overrides: See :func:`open_clip_config`.

    Returns:
        Ours and OpenCLIP's, in training mode, float32.
    """
    if name not in list_models():
        raise ValueError(f"unknown model {name!r}; known: {', '.join(list_models())}")
    open_clip = import_open_clip()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = open_clip.model.CLIP(**open_clip_config(name, **overrides), output_dict=True)
        with torch.no_grad():
            for key, parameter in theirs.named_parameters():
                if parameter.ndim == 1 and not key.startswith("logit"):
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
                if key.endswith("bn3.weight"):
                    parameter.add_(0.3)
    with torch.device("meta"):
        ours = create_model(name, **overrides)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    state["logit_scale"] = state["logit_scale"].reshape(1)
    ours.load_state_dict(state, assign=True)
    return ours.to(device), theirs.to(device)


def our_name(key: str) -> str:
    """The name of a parameter without what a wrapper puts before it."""
    return key.removeprefix("_orig_mod.").removeprefix("module.")


def require_open_clip() -> None:
    """Import OpenCLIP and set torch's GPU backends as its training program sets them.

    Raises:
        SystemExit: it is not installed; says how to install it.
    """
    try:
        import_open_clip()
    except ImportError as error:
        raise SystemExit(str(error)) from None
    set_products("tf32")
    torch.backends.cudnn.benchmark = True


def set_products(precision: str) -> None:
    """Have a GPU take float32 products and convolutions in full.

    Args:
        precision: ``fp32`` for that; under any other they are in TF32.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"

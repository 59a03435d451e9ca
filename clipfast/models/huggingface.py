"""Hugging Face's CLIPModel in the names and shapes of OpenAI's and OpenCLIP's state dicts.

q, k, v projection        one joint matrix, its rows in this order
projection.weight [D, C]  its transpose [C, D]
encoder.layers.N          transformer.resblocks.N
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_TEXT, _VISION = "text_model.", "vision_model."
# Whole names, and prefixes that end in a dot.
_PLACES = {
    f"{_TEXT}embeddings.token_embedding.": "token_embedding.",
    f"{_TEXT}embeddings.position_embedding.weight": "positional_embedding",
    f"{_TEXT}final_layer_norm.": "ln_final.",
    f"{_VISION}embeddings.class_embedding": "visual.class_embedding",
    f"{_VISION}embeddings.patch_embedding.": "visual.conv1.",
    f"{_VISION}embeddings.position_embedding.weight": "visual.positional_embedding",
    f"{_VISION}pre_layrnorm.": "visual.ln_pre.",
    f"{_VISION}pre_layernorm.": "visual.ln_pre.",
    f"{_VISION}post_layernorm.": "visual.ln_post.",
}
_TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}
# Numbers from 0 on, which are no weights.
_POSITION_IDS = "embeddings.position_ids"
_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)")
_IN_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_PART = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a CLIPModel, with both towers."""
    return f"{_TEXT}embeddings.token_embedding.weight" in state and (
        f"{_VISION}embeddings.class_embedding" in state
    )


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's state dict in published names and shapes.

    Args:
        state: for which `is_hugging_face` holds.

    Returns:
        The same numbers. A name that CLIPModel does not have is left as it is.
    """
    result: dict[str, Tensor] = {}
    joint: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        if block:
            tower = "visual." if block[1] == "vision" else ""
            place = f"{tower}transformer.resblocks.{block[2]}."
            if part := _PART.fullmatch(block[3]):
                joint.setdefault(f"{place}attn.in_proj_{part[2]}", {})[part[1]] = tensor
            else:
                result[place + _replaced(block[3], _IN_BLOCK)] = tensor
        elif name in _TRANSPOSED:
            result[_TRANSPOSED[name]] = tensor.T if tensor.ndim == 2 else tensor
        elif not name.endswith(_POSITION_IDS):
            result[_replaced(name, _PLACES)] = tensor
    for name, parts in joint.items():
        whole = [parts[key] for key in "qkv" if key in parts]
        alike = len({(part.shape[1:], part.dtype) for part in whole}) == 1
        # With a part missing the joint matrix has another shape, by which it is refused.
        result[name] = torch.cat(whole) if alike else whole[0]
    return result


def _replaced(name: str, places: Mapping[str, str]) -> str:
    for theirs, ours in places.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours + name.removeprefix(theirs)
    return name

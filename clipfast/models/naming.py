"""Names of other programs' state dicts, brought to those of OpenAI and OpenCLIP.

_orig_mod, _fsdp_wrapped_module, ...   of torch.compile and FSDP, anywhere in a name
module., model., net., ...             of whatever the CLIP was a part of
text.                                  of OpenCLIP's CustomTextCLIP
text_model., vision_model.             of Hugging Face's CLIPModel
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clipfast.models.checks import some_of
from clipfast.models.huggingface import from_hugging_face, is_hugging_face
from clipfast.models.published import unwrap, without_shells

_SCALE = "logit_scale"
# What a set of weights has beside its scale.
_TOWERS = ("visual.", "vision_model.", "token_embedding.")
_TEXT = "text."
_TEXT_NAMES = ("token_embedding.", "transformer.resblocks.", "ln_final.")
_TEXT_TABLES = ("positional_embedding", "text_projection")


def without_wrappers(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A state dict without the names of what was wrapped around a model or its parts.

    Args:
        state: as a file holds it.
        path: the file, for messages and warnings.

    Returns:
        The same values. Those beside the model, such as a further head, are left out with a
        warning.

    Raises:
        ValueError: two values get one name, or there are several models.
    """
    bare: dict[str, Any] = {}
    for name, value in state.items():
        plain = without_shells(name)
        if plain in bare:
            raise ValueError(f"{path} holds {plain[:99]!r} twice, once as {name[:99]!r}")
        bare[plain] = value
    return _of_one_model(unwrap(bare), path)


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names that OpenAI and OpenCLIP publish.

    Args:
        state: without the names of wrappers.

    Returns:
        The same numbers.
    """
    if is_hugging_face(state):
        return from_hugging_face(state)
    if _is_custom_text(state):
        return {_of_custom_text(name): tensor for name, tensor in state.items()}
    return dict(state)


def origin_of(state: Mapping[str, Tensor]) -> str:
    """Where names come from that `published_names` translates, for messages; empty for others."""
    if is_hugging_face(state):
        return "a CLIPModel of Hugging Face's transformers"
    return "OpenCLIP's CustomTextCLIP" if _is_custom_text(state) else ""


def _of_one_model(state: dict[str, Any], path: Path) -> dict[str, Any]:
    prefixes = [n.removesuffix(_SCALE) for n in state if n == _SCALE or n.endswith(f".{_SCALE}")]
    # A loss may have a scale of its own.
    prefixes = [p for p in prefixes if any(_is_tower(n.removeprefix(p)) for n in state
                                           if n.startswith(p))]  # fmt: skip
    if len(prefixes) > 1:
        raise ValueError(
            f"{path} holds several models, under {some_of(repr(p[:60]) for p in prefixes)}: write "
            "the state dict of one of them to a file of its own"
        )
    if not prefixes or not prefixes[0]:
        return state
    beside = [name for name in state if not name.startswith(prefixes[0])]
    if beside:
        warnings.warn(
            f"{path}: the model stands under {prefixes[0][:60]!r}; {len(beside)} tensors beside it "
            f"are left out: {some_of(name[:99] for name in beside)}",
            stacklevel=2,
        )
    return {n.removeprefix(p): v for p in prefixes for n, v in state.items() if n.startswith(p)}


def _is_tower(name: str) -> bool:
    return name.startswith(_TOWERS) or name.startswith(tuple(_TEXT + t for t in _TOWERS))


def _is_custom_text(state: Mapping[str, Tensor]) -> bool:
    return "text.token_embedding.weight" in state and "token_embedding.weight" not in state


def _of_custom_text(name: str) -> str:
    own = name.removeprefix(_TEXT)
    return own if own in _TEXT_TABLES or own.startswith(_TEXT_NAMES) else name

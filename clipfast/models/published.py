"""Names and shapes of a state dict: here, and as OpenAI and OpenCLIP publish them.

They differ in what wraps a model ("module."), in `logit_scale` (no dimension there, one here, see
`CLIP`), in facts that OpenAI's archives store among the buffers, and in what an image tower says of
itself (`Tower.published`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from clipfast.models.towers import Tower, registered_towers

T = TypeVar("T")

_METADATA = ("input_resolution", "context_length", "vocab_size")
_WRAPPER = "module."
# Of torch.compile and FSDP, around a model or a part of it.
_SHELLS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_TOWER = "visual."


def unwrap(state: Mapping[str, T]) -> dict[str, T]:
    """A state dict without the names of the modules that were around its model.

    Args:
        state: names with "_orig_mod." or the like anywhere, and "module." before all of them.

    Returns:
        The same tensors.
    """
    state = {without_shells(name): tensor for name, tensor in state.items()}
    while state and all(name.startswith(_WRAPPER) for name in state):
        state = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    return state


def without_shells(name: str) -> str:
    """A name without those of compiled and sharded modules in it."""
    return ".".join(part for part in name.split(".") if part not in _SHELLS)


def from_published(state: Mapping[str, Tensor], tower: Tower) -> dict[str, Tensor]:
    """A published state dict in the names and shapes of a model here.

    Args:
        state: as a file holds it.
        tower: the kind of image tower that the model has.

    Returns:
        The same tensors, scalars with shape [1].
    """
    names = {theirs: ours for ours, theirs in tower.published.items()}
    state = {_rename(n, names): t for n, t in unwrap(state).items() if n not in _METADATA}
    return {n: t.reshape(1) if _is_scalar(n, t) else t for n, t in state.items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model here in published names and shapes.

    Args:
        state: unwrapped, with the first weight of its image tower.

    Returns:
        The same tensors, scalars with shape [].
    """
    tower = tower_of_state(state)
    names = dict(tower.published) if tower is not None else {}
    return {_rename(n, names): t.reshape(()) if _is_scalar(n, t) else t for n, t in state.items()}


def tower_of_state(state: Mapping[str, Tensor]) -> Tower | None:
    """A kind of image tower that such a state dict can be of; None where there is none.

    Args:
        state: names as here. Towers that share a first weight share their published names.
    """
    known = registered_towers()
    return next((tower for tower in known if _TOWER + tower.first_weight in state), None)


def _is_scalar(name: str, tensor: Tensor) -> bool:
    """Whether this is `logit_scale` or another number beside it, no part of a tower."""
    return "." not in name and tensor.numel() == 1


def _rename(name: str, names: Mapping[str, str]) -> str:
    own = name.removeprefix(_TOWER)
    if own == name:
        return name
    for before, after in names.items():
        if own == before or (before.endswith(".") and own.startswith(before)):
            return _TOWER + after + own.removeprefix(before)
    return name

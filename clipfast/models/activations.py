"""Bytes that a forward and backward pass needs, counted by running it without computing anything.

The model runs on fake tensors, which have shapes, dtypes and storages but no memory. Every storage
that an operator makes is noted, and noted again when it is let go: what is alive when the forward
pass ends waits for the backward pass, and the most that is alive at any time is the peak. Nothing
is modelled, so a change of a block, of what autograd saves or of a mode of recomputation counts by
itself. Weights, their gradients and optimizer states are left out; so is a library's workspace.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from clipfast.models.architecture import Architecture
from clipfast.models.fake import fake_pass
from clipfast.models.recompute import MODES, Recompute
from clipfast.models.renamed import renamed_argument


class ActivationBytes(NamedTuple):
    """What one forward and backward pass needs beyond weights and inputs.

    Attributes:
        kept: alive between the two passes.
        peak: the most at any time.
        overlap: of the gradients of weights, bytes that come only after as much of the activations
            has gone: both together are never more than peak + gradients - overlap.
    """

    kept: int
    peak: int
    overlap: int = 0


@renamed_argument("checkpoint", "recompute")
def activation_bytes(
    config: Architecture,
    batch: int,
    dtype: torch.dtype,
    recompute: Recompute | None = None,
    *,
    caption_tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> ActivationBytes:
    """Count the activations of both towers. It takes about a second, whatever the batch.

    Args:
        config: the model.
        batch: pairs B encoded together.
        dtype: of weights and activations.
        recompute: "none", "selective" or "full"; None takes the architecture's.
        caption_tokens: tokens of every caption, start and end included; None takes the context
            length, the most there can be.
        device: where the model will run: operators differ from one device to another, and a GPU
            must be there to be asked.

    Returns:
        Bytes for batch B.

    Raises:
        ValueError: for the mode "auto".
    """
    config = replace(config, recompute=recompute or config.recompute)
    config = replace(config, recompute=config.resolved_recompute)
    length = caption_tokens or (config.text.context_length if config.text else 1)
    return _count(config, batch, dtype, length, torch.device(device))


def fastest_recompute(
    config: Architecture,
    batch: int,
    dtype: torch.dtype,
    available: int,
    *,
    caption_tokens: int | None = None,
    device: torch.device | str = "cpu",
    modes: Sequence[str] = MODES,
) -> tuple[str, ActivationBytes]:
    """The mode of recomputation that recomputes least and fits.

    Args:
        config: the model; its own mode is not looked at.
        batch: see `activation_bytes`.
        dtype: see `activation_bytes`.
        available: bytes that activations may take.
        caption_tokens: see `activation_bytes`.
        device: see `activation_bytes`.
        modes: those to choose from, the one that recomputes least first.

    Returns:
        The mode, and what it needs; the last one where nothing fits.
    """
    for mode in modes:
        needed = activation_bytes(
            config, batch, dtype, mode, caption_tokens=caption_tokens, device=device
        )
        if needed.peak <= available:
            break
    return mode, needed


def _count(
    config: Architecture, batch: int, dtype: torch.dtype, length: int, device: torch.device
) -> ActivationBytes:
    with fake_pass(config, batch, dtype, length, device) as towers, _LiveBytes() as live:
        features = (towers.encode_text(), towers.encode_image())
        kept = live.now
        for parameter in towers.model.parameters():
            parameter.register_post_accumulate_grad_hook(live.note_gradient)
        total: Any = sum(f.float().sum() for f in features)
        del features
        total.backward()
    return ActivationBytes(kept, live.peak, live.peak + live.gradients - live.peak_of_both)


class _LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made inside and that something still holds; and those of
    the weights' gradients, which are dropped here and kept by a run."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.gradients = self.peak_of_both = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._known.setdefault(leaf.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        self.peak_of_both = max(self.peak_of_both, self.now + self.gradients)
        weakref.finalize(storage, self._let_go, size)

    def note_gradient(self, parameter: Tensor) -> None:
        """Its gradient is whole, and was dropped just before."""
        self.gradients += parameter.nbytes
        self.peak_of_both = max(self.peak_of_both, self.now + self.gradients)

    def _let_go(self, size: int) -> None:
        self.now -= size

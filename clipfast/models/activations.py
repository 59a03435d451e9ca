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
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from clipfast.models.architecture import Architecture
from clipfast.models.clip import CLIP
from clipfast.models.packing import PackedCaptions, pack_captions
from clipfast.models.recompute import MODES, Recompute
from clipfast.models.renamed import renamed_argument
from clipfast.ops.products import linear


class ActivationBytes(NamedTuple):
    """What one forward and backward pass needs beyond weights and inputs.

    Attributes:
        kept: alive between the two passes.
        peak: the most at any time.
    """

    kept: int
    peak: int


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
    length = caption_tokens or config.text.context_length
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
    text = config.text
    # The plan for the captions needs their real lengths, so it is made outside.
    packed = pack_captions(
        torch.zeros(batch, length, dtype=torch.int64, device=device),
        torch.full((batch,), length),
        width=text.width,
        heads=text.heads,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = CLIP(config).to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        _make_fake(model)
        size = config.vision.image_size
        images = torch.empty(batch, 3, size, size, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        with _LiveBytes() as live:
            features = (_encode_packed(model, packed), model.encode_image(images))
            kept = live.now
            total: Any = sum(f.float().sum() for f in features)
            del features
            total.backward()
    return ActivationBytes(kept, live.peak)


def _encode_packed(model: CLIP, packed: PackedCaptions) -> Tensor:
    """What `CLIP.encode_text` does with captions that are packed already."""
    x = model.token_embedding(packed.index * 0)
    x = x + nn.functional.embedding(packed.positions, model.positional_embedding)
    x = model.transformer(x, packed.layout)
    return packed.layout.restore(linear(model.ln_final(x), model.text_projection.T))


def _make_fake(model: nn.Module) -> None:
    """Put fake tensors of the default device in the places of a model's own."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
                fake.register_post_accumulate_grad_hook(_drop_gradient)
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made inside and that something still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
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
        weakref.finalize(storage, self._let_go, size)

    def _let_go(self, size: int) -> None:
        self.now -= size

"""Both towers on fake tensors, which have shapes, types and storages but no memory: what is counted
or traced of a pass is that of the real modules, at any size, in about a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipfast.models.architecture import Architecture
from clipfast.models.clip import CLIP
from clipfast.models.packing import PackedCaptions, pack_captions
from clipfast.ops.products import linear


@dataclass(frozen=True)
class FakePass:
    """A model and its inputs, all fake.

    Attributes:
        model: in training mode; gradients of its parameters are dropped as they come.
        images: [B, 3, S, S], channels_last.
        captions: B packed captions; None without a text tower.
    """

    model: CLIP
    images: Tensor
    captions: PackedCaptions | None

    def encode_image(self) -> Tensor:
        """Image features [B, D]."""
        return self.model.encode_image(self.images)

    def encode_text(self) -> Tensor:
        """Text features [B, D]: what `CLIP.encode_text` does with captions that are packed.
        Without a text tower, those of the other images."""
        model, packed = self.model, self.captions
        if packed is None:
            return self.encode_image()
        x = model.token_embedding(packed.index * 0)
        x = x + nn.functional.embedding(packed.positions, model.positional_embedding)
        x = model.transformer(x, packed.layout)
        return packed.layout.restore(linear(model.ln_final(x), model.text_projection.T))


@contextmanager
def fake_pass(
    config: Architecture,
    batch: int,
    dtype: torch.dtype,
    length: int | Sequence[int],
    device: torch.device,
) -> Iterator[FakePass]:
    """Make a model and a batch of fake tensors; inside, every tensor that is made is fake too.

    Args:
        config: the model; its mode of recomputation is one that runs.
        batch: pairs B.
        dtype: of weights and activations.
        length: tokens of every caption, or of each.
        device: where it would run.
    """
    # The plan for the captions needs their real lengths, so it is made outside.
    lengths = torch.full((batch,), length) if isinstance(length, int) else torch.tensor(length)
    packed = None
    if config.text is not None:
        packed = pack_captions(
            torch.zeros(batch, int(lengths.max()), dtype=torch.int64, device=device),
            lengths,
            width=config.text.width,
            heads=config.text.heads,
            dtype=dtype,
        )
    with torch.device("meta"):
        model = CLIP(config).to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        _make_fake(model)
        size = config.vision.image_size
        images = torch.empty(batch, 3, size, size, dtype=dtype)
        yield FakePass(model, images.contiguous(memory_format=torch.channels_last), packed)


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

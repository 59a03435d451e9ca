"""The CLIP model: two towers and the temperature between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models.architecture import Architecture, TextConfig
from clipfast.models.catalogue import get_config
from clipfast.models.layers import TokenEmbedding
from clipfast.models.packing import pack_captions
from clipfast.models.recompute import Recompute
from clipfast.models.towers import Tower, tower_of
from clipfast.models.transformer import BlockInit, Transformer, use_activation
from clipfast.ops.products import linear


class CLIP(nn.Module):
    """Image and text encoders into one embedding space, with a learned temperature.

        u = visual(image)
        v = ln_final(transformer(token_embedding[tokens] + positional_embedding)[end]) projection
        s = exp(logit_scale)

    Features come straight from the projections: normalising them is the loss's work. Parameter
    names are those of the paper's released code. `logit_scale` has shape [1], because DeepSpeed
    cannot broadcast a 0-dimensional parameter; so have further scalars of an objective.

    Where the architecture has no text tower, the other side of a pair is a picture too, and the
    image tower encodes both. Where it has a fixed temperature, `logit_scale` is a buffer and s is
    1 / temperature.

    Under ZeRO-3 call the module itself rather than `encode_image` or `encode_text`: parameters
    of the root are gathered for `forward` only.

    Args:
        config: the architecture; kept as `config`.

    Source: Radford et al. 2021, sections 2.3 to 2.5.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.config = config
        recompute = config.resolved_recompute
        self.visual = self.tower.build(config.vision, config.embed_dim, recompute)
        if config.text is not None:
            self._build_text(config.text, recompute)
        use_activation(self, config.activation)
        if config.temperature is None:
            self.logit_scale = nn.Parameter(torch.empty(1))
        else:
            self.register_buffer("logit_scale", torch.empty(1))
        self._scalars = [name for name, _ in config.scalars if name != "logit_scale"]
        for name in self._scalars:
            self.register_parameter(name, nn.Parameter(torch.empty(1)))
        self.reset_parameters()

    def _build_text(self, text: TextConfig, recompute: Recompute) -> None:
        self.transformer = Transformer(
            text.width,
            text.layers,
            text.heads,
            init=BlockInit.scaled(text.width, text.layers),
            recompute=recompute,
        )
        self.token_embedding = TokenEmbedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, self.config.embed_dim))

    @property
    def tower(self) -> Tower:
        """The kind of its image tower."""
        return tower_of(self.config.vision)

    def reset_parameters(self) -> None:
        """Draw the parameters that the root itself holds anew; see `initialize` for all."""
        if self.config.text is not None:
            nn.init.normal_(self.positional_embedding, std=0.01)
            nn.init.normal_(self.text_projection, std=self.config.text.width**-0.5)
        starts = {"logit_scale": math.log(1 / 0.07), **dict(self.config.scalars)}
        if self.config.temperature is not None:
            starts["logit_scale"] = math.log(1 / self.config.temperature)
        for name, start in starts.items():
            nn.init.constant_(getattr(self, name), start)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw every parameter and reset every statistic, in the order of `modules()`.

        For a model built under `torch.device("meta")` and then given memory by `to_empty`.
        """
        for module in self.modules():
            reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def encode_image(self, images: Tensor) -> Tensor:
        """u = visual(images), not normalised.

        Args:
            images: [B, 3, S, S] with S the configuration's `image_size`, normalised pixels of
                any floating-point dtype; cast to the parameters' dtype.

        Returns:
            [B, D], the parameters' dtype (autocast's under autocast).

        Raises:
            TypeError: for integer pixels.
            ValueError: for another shape.
        """
        size = self.config.vision.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f"{self.config.name} reads images [B, 3, {size}, {size}], got "
                f"{list(images.shape)}: resize them, or create the model with image_size="
            )
        if not images.is_floating_point():
            raise TypeError(f"expected normalised floating-point images, got {images.dtype}")
        return self.visual(images.to(self.tower.input_dtype(self.visual)))

    def encode_text(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """v = the projection of the end-of-text position, not normalised.

        Attention is causal and only that position is read, so tokens behind it change nothing:
        they are not computed (see `pack_captions`), and L makes no difference.

        Args:
            tokens: [B, L] int64, L at most the context length; the end-of-text token is the
                largest id of its row. Without a text tower the other pictures, as `encode_image`
                takes them.
            lengths: [B] int64 on the CPU, tokens up to and including end-of-text, where the
                caller knows them: finding them in `tokens` makes the host wait for a GPU.

        Returns:
            [B, D], the parameters' dtype (autocast's under autocast).

        Raises:
            ValueError: if `tokens` is not 2-dimensional, or longer than the context; or if
                `lengths` does not fit it.
        """
        if self.config.text is None:
            return self.encode_image(tokens)
        context = self.config.text.context_length
        if tokens.ndim != 2 or tokens.shape[1] > context:
            raise ValueError(
                f"expected tokens [B, L] with L <= {context}, got {list(tokens.shape)}: "
                "truncate them in the tokenizer, or create the model with context_length="
            )
        text, device, dtype = self.config.text, tokens.device, self.token_embedding.weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        packed = pack_captions(tokens, lengths, width=text.width, heads=text.heads, dtype=dtype)
        x = self.token_embedding(tokens.flatten()[packed.index])
        x = x + F.embedding(packed.positions, self.positional_embedding)
        x = self.transformer(x, packed.layout)
        return packed.layout.restore(linear(self.ln_final(x), self.text_projection.T))

    def forward(
        self,
        images: Tensor | None = None,
        tokens: Tensor | None = None,
        on_text_features: Callable[[Tensor], Any] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Encode either side or both, the text first.

        The order is fixed so that a gather of the text features can hide behind the image tower.

        Args:
            images: [B, 3, S, S], see `encode_image`; None skips the image tower.
            tokens: [B, L] int64, see `encode_text`; None skips the text tower.
            on_text_features: takes over the text features [B, D] before the image tower runs, to
                start that gather; the result then holds None in their place (so
                DistributedDataParallel must not look for unused parameters).
            lengths: [B] int64 on the CPU, see `encode_text`.

        Returns:
            Image features [B, D] or None, text features [B, D] or None, exp(logit_scale) [1]; and
            the further scalars of the architecture, [1] each. Scalars are float32 at least.

        Raises:
            TypeError: for integer pixels.
            ValueError: for shapes that the model cannot read.
        """
        text_features = None if tokens is None else self.encode_text(tokens, lengths)
        if text_features is not None and on_text_features is not None:
            on_text_features(text_features)
            text_features = None
        image_features = None if images is None else self.encode_image(images)
        # In float32 whatever the parameter's dtype: the exponential would be rounded once more.
        wide = torch.promote_types(self.logit_scale.dtype, torch.float32)
        scalars = [self.get_parameter(name).to(wide) for name in self._scalars]
        return image_features, text_features, self._scale(wide), *scalars

    def _scale(self, dtype: torch.dtype) -> Tensor:
        if self.config.temperature is None:
            return self.logit_scale.to(dtype).exp()
        return self.logit_scale.new_full((1,), 1 / self.config.temperature, dtype=dtype)


def create_model(name: str, **overrides: Any) -> CLIP:
    """A randomly initialised CLIP model.

    Build it under `torch.device("meta")` to allocate nothing; `to_empty` and `CLIP.initialize` (or
    `load_weights`) then fill it.

    Args:
        name: one of `list_models()`.
        overrides: fields to replace, by the flat names that `Architecture.override` lists, such as
            `image_size=112`, `text_layers=6`, `recompute="full"`; `activation="gelu"` gives the
            models of OpenCLIP's names that do not end in "-quickgelu".

    Returns:
        The model in training mode, fp32, on the default device.

    Raises:
        ValueError: for an unknown model or field, with what exists and the nearest name, or for
            a value with which the model cannot exist.

    Source: Radford et al. 2021, tables 18 to 20; the two tiny models are ours.
    """
    return CLIP(get_config(name, **overrides))


def num_parameters(model: nn.Module) -> int:
    """How many parameters a model has, batch norm's statistics not counted.

    Args:
        model: any module; one partitioned by ZeRO-3 counts whole.

    Returns:
        The number of scalars.
    """
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())

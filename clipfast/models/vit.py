"""The vision transformer image tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipfast.models.config import ViTConfig
from clipfast.models.transformer import BlockInit, Transformer


class VisionTransformer(nn.Module):
    """Image -> embedding: patches, a class token, transformer, the class token projected.

        t = ln_pre([class_embedding, conv1(image)] + positional_embedding)
        y = ln_post(transformer(t)[0]) proj

    Args:
        config: the architecture.
        output_dim: width D of the embedding.
        gradient_checkpointing: recompute each block in the backward pass.

    Source: Radford et al. 2021, section 2.4 (Dosovitskiy et al. 2020, with one more layer norm
    before the transformer).
    """

    def __init__(
        self, config: ViTConfig, output_dim: int, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(config.grid_size**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            is_causal=False,
            init=BlockInit(),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, output_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw class token, positions and projection anew: N(0, 1/C). Children reset themselves."""
        std = self.class_embedding.shape[0] ** -0.5
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=std)

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch of images.

        Args:
            images: [B, 3, S, S], dtype of the convolution.

        Returns:
            [B, D].
        """
        x = self.conv1(images).flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj

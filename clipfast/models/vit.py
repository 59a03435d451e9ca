"""The vision transformer image tower."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipfast.models.checks import require, require_whole
from clipfast.models.sequences import UniformLayout
from clipfast.models.towers import Tower, register_tower
from clipfast.models.transformer import BlockInit, ResidualAttentionBlock, Transformer
from clipfast.ops.products import linear


@dataclass(frozen=True)
class ViTConfig:
    """Image tower: a pre-norm vision transformer with a class token.

    Args:
        layers: transformer blocks.
        width: channels of a token.
        patch_size: side of a patch, in pixels.
        image_size: side of the square input, in pixels.
        head_width: channels of one attention head.

    Raises:
        ValueError: where no such tower exists.
    """

    layers: int
    width: int
    patch_size: int
    image_size: int = 224
    head_width: int = 64

    def __post_init__(self) -> None:
        require_whole(
            vision_layers=self.layers,
            vision_width=self.width,
            vision_head_width=self.head_width,
            patch_size=self.patch_size,
            image_size=self.image_size,
        )
        require(self.layers > 0, f"vision_layers must be positive, got {self.layers}")
        require(
            self.width > 0 and self.head_width > 0 and self.width % self.head_width == 0,
            f"vision_head_width={self.head_width} must divide vision_width={self.width}",
        )
        for name in ("patch_size", "image_size"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(
            self.image_size % self.patch_size == 0,
            f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}: "
            "pixels at the edge would be dropped",
        )

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


class PatchEmbedding(nn.Conv2d):
    """The convolution whose stride is its kernel, as one matrix product over patches.

    Args:
        width: channels C of a token.
        patch_size: side p of a patch, in pixels.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__(3, width, patch_size, stride=patch_size, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed every patch.

        Args:
            images: [B, 3, S, S], S a multiple of p.

        Returns:
            [B, (S / p)^2, C], patches row by row.
        """
        patch, (batch, _, size, _) = self.kernel_size[0], images.shape
        grid = size // patch
        weight = self.weight
        x = images.reshape(batch, 3, grid, patch, grid, patch)
        if images.is_contiguous(memory_format=torch.channels_last):
            # Pixels by rows of a patch, colours innermost: the order they lie in.
            x, weight = x.permute(0, 2, 4, 3, 5, 1), weight.permute(0, 2, 3, 1)
        else:
            x = x.permute(0, 2, 4, 1, 3, 5)
        return linear(x.reshape(batch, grid**2, 3 * patch**2), weight.flatten(1))


class VisionTransformer(nn.Module):
    """Image -> embedding: patches, a class token, transformer, the class token projected.

        t = ln_pre([class_embedding, conv1(image)] + positional_embedding)
        y = ln_post(transformer(t)[0]) proj           the last block computes token 0 alone

    Args:
        config: the architecture.
        output_dim: width D of the embedding.
        recompute: what each block keeps for the backward pass, see `run_block`.

    Source: Radford et al. 2021, section 2.4 (Dosovitskiy et al. 2020, with one more layer norm
    before the transformer).
    """

    def __init__(self, config: ViTConfig, output_dim: int, recompute: str = "none") -> None:
        super().__init__()
        width = config.width
        self.conv1 = PatchEmbedding(width, config.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(config.grid_size**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            init=BlockInit(),
            recompute=recompute,
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
        x = self.conv1(images)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)
        layout = UniformLayout(*x.shape[:2])
        x = self.transformer(self.ln_pre(x.flatten(0, 1)), layout)
        return linear(self.ln_post(x), self.proj.T)


register_tower(
    Tower(
        ViTConfig,
        VisionTransformer,
        first_weight="conv1.weight",
        blocks=(ResidualAttentionBlock,),
        positions=("positional_embedding",),
    )
)

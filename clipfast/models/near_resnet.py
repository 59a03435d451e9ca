"""The image tower that finds near duplicates: a ResNet without batch statistics.

A batch norm tells each image something of the others, and an image's duplicate is in its batch. So
filters are normalised instead. A blur comes before every stride, so that a picture that moved by a
pixel has nearly the same features. The activation is GELU.

Source: Radford et al. 2021, appendix C.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models.blur_pool import blur_pool
from clipfast.models.checks import require, require_whole
from clipfast.models.layers import Linear
from clipfast.models.recompute import run_block
from clipfast.models.towers import Tower, register_tower
from clipfast.models.weight_norm import GELU_GAIN, WeightNormConv2d


@dataclass(frozen=True)
class NearResNetConfig:
    """Image tower: two convolutions, stages of bottlenecks, a mean over places, a projection.

    Args:
        layers: bottleneck blocks in each stage.
        width: channels of the first stage's 3x3 convolutions; each stage has twice those before.
        image_size: side of the square input, in pixels.
        stem_width: channels of the first convolution.

    Raises:
        ValueError: where no such tower exists.
    """

    layers: tuple[int, ...]
    width: int = 64
    image_size: int = 224
    stem_width: int = 32

    def __post_init__(self) -> None:
        layers = tuple(self.layers) if isinstance(self.layers, Iterable) else (self.layers,)
        object.__setattr__(self, "layers", layers)
        require_whole(
            **{f"vision_layers[{i}]": count for i, count in enumerate(layers)},
            vision_width=self.width,
            image_size=self.image_size,
            stem_width=self.stem_width,
        )
        require(
            len(layers) > 0 and min(layers) > 0,
            f"a tower needs a positive block count per stage, got vision_layers={self.layers}",
        )
        for name in ("width", "stem_width"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(
            self.image_size > 0 and self.image_size % self.stride == 0,
            f"image_size must be a multiple of {self.stride}, got {self.image_size}: every pool "
            "halves it",
        )

    @property
    def stride(self) -> int:
        """Pixels per place of the last feature map."""
        return 4 * 2 ** (len(self.layers) - 1)


class NearBlock(nn.Module):
    """y = shortcut(x) + a conv1x1(gelu(conv3x3(pool(gelu(conv1x1(gelu(x)))))))

    with a = 1 / sqrt(blocks of the tower), the starting length of the last filters: so all branches
    together add as much as the first shortcut carries. `pool` is `blur_pool` where the block
    halves its map, and the shortcut then is `conv1x1(pool(x))`.

    Args:
        in_channels: channels of x.
        channels: of the 3x3 convolution; the block returns four times as many.
        halves: the map is halved.
        branch: a.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, halves: bool, branch: float) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.halves = halves
        self.conv1 = WeightNormConv2d(in_channels, channels)
        self.conv2 = WeightNormConv2d(channels, channels, 3)
        self.conv3 = WeightNormConv2d(channels, out_channels, gain=GELU_GAIN * branch)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = WeightNormConv2d(in_channels, out_channels, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: [B, in_channels, H, W].

        Returns:
            [B, 4 * channels, H, W], or half of H and W.
        """
        out = F.gelu(self.conv1(F.gelu(x)))
        if self.halves:
            out, x = blur_pool(out), blur_pool(x)
        out = self.conv3(F.gelu(self.conv2(out)))
        return out + (x if self.shortcut is None else self.shortcut(x))


class NearResNet(nn.Module):
    """Image -> embedding.

    Args:
        config: the architecture.
        output_dim: D, width of the embedding.
        recompute: what blocks keep for the backward pass.
    """

    def __init__(self, config: NearResNetConfig, output_dim: int, recompute: str = "none") -> None:
        super().__init__()
        self.recompute = recompute
        self.stem1 = WeightNormConv2d(3, config.stem_width, 3, gain=1.0)
        channels = 2 * config.width
        self.stem2 = WeightNormConv2d(config.stem_width, channels, 3)
        branch = sum(config.layers) ** -0.5
        blocks = []
        for stage, count in enumerate(config.layers):
            for i in range(count):
                halves = stage > 0 and i == 0
                blocks.append(NearBlock(channels, config.width << stage, halves, branch))
                channels = NearBlock.expansion * (config.width << stage)
        self.blocks = nn.ModuleList(blocks)
        self.projection = Linear(channels, output_dim, std=channels**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: [B, 3, S, S].

        Returns:
            [B, D], not normalised.
        """
        x = F.gelu(blur_pool(self.stem1(images)))
        x = blur_pool(self.stem2(x))
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        return self.projection(F.gelu(x).mean(dim=(2, 3)))


register_tower(
    Tower(NearResNetConfig, NearResNet, first_weight="stem1.weight", blocks=(NearBlock,))
)

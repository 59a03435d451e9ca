"""The ResNet image tower: three-conv stem, anti-aliased strides, attention pooling.

Source: Radford et al. 2021, section 2.4 (He et al. 2019's ResNet-D stem and shortcut; Zhang 2019's
anti-aliasing by average pooling).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipfast.models.attention_pool import AttentionPool2d
from clipfast.models.batch_norm import BatchNorm2d
from clipfast.models.checks import require, require_whole
from clipfast.models.recompute import run_block
from clipfast.models.towers import Tower, register_tower
from clipfast.ops.average_pool import average_pool


@dataclass(frozen=True)
class ResNetConfig:
    """Image tower: a ResNet with a three-conv stem, anti-aliased strides and attention pooling.

    Args:
        layers: bottleneck blocks in each of the four stages.
        width: channels after the stem; the last stage has 32 * width.
        image_size: side of the square input, in pixels.
        head_width: channels of one attention-pooling head.

    Raises:
        ValueError: where no such tower exists.
    """

    layers: tuple[int, int, int, int]
    width: int = 64
    image_size: int = 224
    head_width: int = 64

    def __post_init__(self) -> None:
        layers = tuple(self.layers) if isinstance(self.layers, Iterable) else (self.layers,)
        object.__setattr__(self, "layers", layers)
        require_whole(
            **{f"vision_layers[{i}]": count for i, count in enumerate(layers)},
            vision_width=self.width,
            vision_head_width=self.head_width,
            image_size=self.image_size,
        )
        require(
            len(layers) == 4 and min(layers) > 0,
            f"a ResNet needs four positive block counts, got vision_layers={self.layers}",
        )
        require(
            self.width > 0 and self.width % 2 == 0,
            f"the stem halves vision_width: give a positive even number, got {self.width}",
        )
        require(
            self.head_width > 0 and self.embed_width % self.head_width == 0,
            f"vision_head_width={self.head_width} must divide 32 * vision_width = "
            f"{self.embed_width}",
        )
        require(self.grid_size > 0, f"image_size must be at least 31 pixels, got {self.image_size}")

    @property
    def embed_width(self) -> int:
        """Channels that the attention pooling sees."""
        return 32 * self.width

    @property
    def heads(self) -> int:
        """Attention-pooling heads."""
        return self.embed_width // self.head_width

    @property
    def grid_size(self) -> int:
        """Side of the last feature map: the stem's conv rounds up, the four pools round down."""
        return (self.image_size + 1) // 2 // 16


class Bottleneck(nn.Module):
    """y = relu(branch(x) + shortcut(x)), both anti-aliased where the block strides.

        branch   = bn3(conv1x1(pool(relu(bn2(conv3x3(relu(bn1(conv1x1(x)))))))))
        shortcut = bn(conv1x1(pool(x))) where the shape changes, x elsewhere

    No convolution has a stride: an average pool of `stride` x `stride` comes first. The gain of
    `bn3` starts at 0.

    Args:
        in_channels: channels of x.
        channels: channels of the 3x3 convolution; the block returns four times as many.
        stride: 1 or 2.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels, zero_gain=True)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or in_channels != out_channels:
            # The parameterless pool is named -1 so that conv and norm keep the names 0 and 1 of
            # published checkpoints.
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(
                OrderedDict([("-1", pool), ("0", conv), ("1", BatchNorm2d(out_channels))])
            )

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, shortcut_stride: int = 0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            x: [B, in_channels, H, W].
            shortcut: x again, or its pool where the block strides, as the block before returned it;
                None: taken from x.
            shortcut_stride: stride of the block that follows, to return its shortcut with the
                result: the two ways' gradients are then added where they are read. 0: there is
                none.

        Returns:
            [B, 4 * channels, H // stride, W // stride]; and where asked for, the next shortcut.
        """
        if shortcut is None:
            shortcut = average_pool(x, self.stride) if self.stride > 1 else x
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out), relu=True, pool=self.stride > 1)
        if self.downsample is not None:
            _, conv, norm = self.downsample
            shortcut = norm(conv(shortcut))
        return self.bn3(self.conv3(out), shortcut, relu=True, shortcut_stride=shortcut_stride)


class ModifiedResNet(nn.Module):
    """Image -> embedding: stem, four stages of bottlenecks, attention pooling.

    Args:
        config: the architecture.
        output_dim: width D of the embedding.
        recompute: what each bottleneck keeps for the backward pass, a mode of `run_block`.
    """

    def __init__(self, config: ResNetConfig, output_dim: int, recompute: str = "none") -> None:
        super().__init__()
        width = config.width
        self.recompute = recompute
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = BatchNorm2d(width)
        self.layer1 = _stage(width, width, config.layers[0], stride=1)
        self.layer2 = _stage(width * 4, width * 2, config.layers[1], stride=2)
        self.layer3 = _stage(width * 8, width * 4, config.layers[2], stride=2)
        self.layer4 = _stage(width * 16, width * 8, config.layers[3], stride=2)
        self.attnpool = AttentionPool2d(
            config.grid_size, config.embed_width, config.heads, output_dim
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch of images.

        Args:
            images: [B, 3, S, S], dtype of the convolutions.

        Returns:
            [B, D].
        """
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.bn1(self.conv1(x), relu=True)
        x = self.bn2(self.conv2(x), relu=True)
        x = self.bn3(self.conv3(x), relu=True, pool=True)
        shortcut = None
        blocks = [block for stage in self._stages() for block in stage]
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            stride = following.stride if following is not None else 0
            x = run_block(block, x, self.recompute, shortcut=shortcut, shortcut_stride=stride)
            x, shortcut = x if stride else (x, None)
        return self.attnpool(x)

    def _stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride)
    rest = [Bottleneck(channels * Bottleneck.expansion, channels) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


register_tower(
    Tower(
        ResNetConfig,
        ModifiedResNet,
        first_weight="conv1.weight",
        blocks=(Bottleneck,),
        # Inside the graph, where batch norm counts a batch once.
        recomputes_in_graph=True,
        has_batch_norm=True,
        # It reads its projections' weights without calling them.
        zero3_leaves=(AttentionPool2d,),
        positions=("attnpool.positional_embedding",),
    )
)

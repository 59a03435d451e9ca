"""The ResNet image tower: three-conv stem, anti-aliased strides, attention pooling.

Source: Radford et al. 2021, section 2.4 (He et al. 2019's ResNet-D stem and shortcut; Zhang 2019's
anti-aliasing by average pooling).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models.attention_pool import AttentionPool2d
from clipfast.models.batch_norm import BatchNorm2d
from clipfast.models.config import ResNetConfig
from clipfast.models.layers import run_block


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

    def forward(self, x: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: [B, in_channels, H, W].

        Returns:
            [B, 4 * channels, H // stride, W // stride].
        """
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        if self.stride > 1:
            out = F.avg_pool2d(out, self.stride)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ModifiedResNet(nn.Module):
    """Image -> embedding: stem, four stages of bottlenecks, attention pooling.

    Args:
        config: the architecture.
        output_dim: width D of the embedding.
        gradient_checkpointing: recompute each bottleneck in the backward pass.
    """

    def __init__(
        self, config: ResNetConfig, output_dim: int, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        width = config.width
        self.gradient_checkpointing = gradient_checkpointing
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
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = F.avg_pool2d(x, 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = run_block(block, x, self.gradient_checkpointing)
        return self.attnpool(x)


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride)
    rest = [Bottleneck(channels * Bottleneck.expansion, channels) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)

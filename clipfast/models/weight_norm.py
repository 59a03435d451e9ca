"""A convolution whose filters have a length of their own: no statistics of a batch.

Source: Salimans and Kingma 2016, equation 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# 1 / sqrt(E[gelu(x)^2]) for x ~ N(0, 1): with it a filter of that length keeps the second moment of
# what an activation gave.
GELU_GAIN = 1.5335


class WeightNormConv2d(nn.Module):
    """y = x * (gain w / |w|) + bias, with the norm of each output channel's filter.

    Equal to `F.conv2d(x, gain * w / w.norm(over=inputs), bias)`. The direction of a filter is drawn
    at random. So at the start y has `gain^2` times the second moment of x, whatever the number of
    inputs, and no batch norm has to bring it back.

    Args:
        in_channels: channels of x.
        out_channels: channels of y.
        kernel: side of the filter, odd; x is padded with zeros to its own size.
        gain: length of every filter at the start.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, gain: float = GELU_GAIN
    ) -> None:
        super().__init__()
        self.start = gain
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.gain = nn.Parameter(torch.empty(out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions anew; lengths and biases start as they did."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.constant_(self.gain, self.start)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: [B, in_channels, H, W].

        Returns:
            [B, out_channels, H, W].
        """
        # In float32 at least: squares of a thousand small numbers are summed.
        wide = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        scale = self.gain.to(wide.dtype) * wide.square().sum(dim=(1, 2, 3)).rsqrt()
        weight = (wide * scale[:, None, None, None]).to(self.weight.dtype)
        return F.conv2d(x, weight, self.bias, padding=self.weight.shape[-1] // 2)

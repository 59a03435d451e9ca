"""Small pieces that both towers share: initialised linear maps, activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

from clipfast.ops.products import linear
from clipfast.ops.quick_gelu import quick_gelu

# As files of weights name them.
Activation = Literal["quick_gelu", "gelu"]


class Linear(nn.Linear):
    """y = x W^T + b, with the starting weights that its place in CLIP asks for.

    Each layer initialises itself in its own constructor: `deepspeed.zero.Init` partitions a
    module's parameters as soon as that constructor returns, so a parent comes too late.

    Args:
        in_features: width of x.
        out_features: width of y.
        std: standard deviation of the normal weight; None leaves PyTorch's uniform default.
        zero_bias: start the bias at 0 instead of PyTorch's uniform default.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        std: float | None = None,
        zero_bias: bool = False,
    ) -> None:
        self.std, self.zero_bias = std, zero_bias  # before super(), which calls reset_parameters
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Draw the weight and the bias anew."""
        if self.std is None:
            super().reset_parameters()
        else:
            nn.init.normal_(self.weight, std=self.std)
            bound = self.in_features**-0.5
            nn.init.uniform_(self.bias, -bound, bound)
        if self.zero_bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension of x.

        Args:
            x: [.., in_features], dtype of the weight (any under autocast).

        Returns:
            [.., out_features].
        """
        return linear(x, self.weight, self.bias)


class TokenEmbedding(nn.Embedding):
    """x[b, l] = W[tokens[b, l]], with W ~ N(0, 0.02^2)."""

    def reset_parameters(self) -> None:
        """Draw the rows anew."""
        nn.init.normal_(self.weight, std=0.02)


class QuickGELU(nn.Module):
    """y = x * sigmoid(1.702 x), the activation of every transformer block in the paper."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation.

        Args:
            x: any shape and floating-point dtype.

        Returns:
            Shape and dtype of `x`.
        """
        return quick_gelu(x)


# torch's own GELU is one pass over memory each way and keeps x alone, as QuickGELU here.
_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def activation_layer(name: Activation) -> nn.Module:
    """The activation of a transformer block.

    Args:
        name: "quick_gelu", or "gelu" for y = x * (1 + erf(x / sqrt(2))) / 2.

    Returns:
        A module without parameters.
    """
    return _ACTIVATIONS[name]()

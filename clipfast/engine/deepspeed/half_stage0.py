"""What DeepSpeed 0.19 leaves undone at ZeRO 0 in half precision.

Its wrapper there, ``FP16_UnfusedOptimizer``, divides gradients by the loss scale, but
``engine.backward`` multiplies the loss for ZeRO's optimizers alone; it takes one optimizer step
with zero gradients while it is built; the norm that it tells is that of the scaled gradient; and
``safe_get_full_fp32_param`` does not find its float32 masters. At every other stage and precision
these functions change nothing.
"""

from typing import Any

from torch import Tensor


def loss_factor(engine: Any) -> float:
    """What a loss must be multiplied by before ``engine.backward``: the loss scale, or 1."""
    return float(engine.optimizer.loss_scale) if _is_unfused(engine) else 1.0


def forget_first_step(engine: Any) -> None:
    """Set Adam's step counts back to 0. With a learning rate of 0 the step itself moved nothing:
    the masters are copies of half-precision weights, which no rounding to their grid changes."""
    if _is_unfused(engine):
        for state in engine.optimizer.optimizer.state.values():
            state["step"].zero_()


def masters(engine: Any) -> dict[int, Tensor]:
    """The float32 master of each half-precision parameter, by the parameter's ``id``."""
    if not _is_unfused(engine):
        return {}
    groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    return {
        id(half): master
        for half_group, master_group in groups
        for half, master in zip(half_group, master_group, strict=True)
    }


def keeps_scale_in_norm(engine: Any) -> bool:
    """Whether the norm that DeepSpeed tells is that of the gradient times the loss scale."""
    return _is_unfused(engine)


def _is_unfused(engine: Any) -> bool:
    return type(engine.optimizer).__name__ == "FP16_UnfusedOptimizer"

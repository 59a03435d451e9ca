"""Where DeepSpeed 0.19 sends gradients on their way, for a trace that names it."""

from typing import Any

_STAGE_3 = "_DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads"


def reducers(engine: Any) -> list[tuple[Any, str]]:
    """Methods that send gradients, with the object that has each.

    Args:
        engine: a DeepSpeed engine.
    """
    candidates = [
        (engine.optimizer, "reduce_ipg_grads"),
        (engine.optimizer, _STAGE_3),
        (engine, "buffered_allreduce_fallback"),
    ]
    return [(owner, name) for owner, name in candidates if hasattr(owner, name)]

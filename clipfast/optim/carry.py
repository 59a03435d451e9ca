"""What is saved of a stretch of a parameter, put into the state of whoever holds it now.

Nothing is rounded where the formats are the same, whoever held it before: the weight's exact fp32
value is carried from any form to any other, and statistics are copied as they are, codes and
exponents. Statistics of another format go through fp32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clipfast.ops.adamw import BLOCK, split_master
from clipfast.optim import states


def empty_state(param: Tensor, stats_dtype: torch.dtype, kept: torch.dtype | None) -> states.State:
    """A state to be filled: zeros in every place.

    Args:
        param: 1-D or contiguous.
        stats_dtype: of the statistics.
        kept: as ``states.master_dtype`` gives it.
    """
    state = states.new_statistics(param, stats_dtype)
    if kept is not None:
        state[states.MASTER_KEYS[kept]] = torch.zeros_like(param, dtype=kept)
    return state


def put_weight(param: Tensor, state: states.State, at: int, saved: Mapping[str, Tensor]) -> None:
    """Fill a stretch of a parameter, and of what keeps its exact weight.

    Args:
        param: contiguous; its elements from ``at`` on are filled.
        state: of the parameter, with ``master`` or ``remainder`` where it keeps one.
        at: of the first element.
        saved: ``weight`` [n] and, where it was kept, ``master`` or ``remainder`` [n].
    """
    weight = saved["weight"]
    beside = {key: saved[key] for key in ("master", "remainder") if key in saved}
    own = {key for key in ("master", "remainder") if key in state}
    target = _stretch(param, at, len(weight))
    if weight.dtype is param.dtype and own == beside.keys():
        target.copy_(weight)
        for key, value in beside.items():
            _stretch(state[key], at, len(value)).copy_(value)
        return
    exact = states.exact_weight(weight, beside)
    if "remainder" in state:
        weight, remainder = split_master(exact)
        target.copy_(weight)
        _stretch(state["remainder"], at, len(weight)).copy_(remainder)
        return
    target.copy_(exact)
    if "master" in state:
        _stretch(state["master"], at, len(exact)).copy_(exact)


def put_statistics(state: states.State, at: int, saved: Mapping[str, Tensor]) -> None:
    """Fill a stretch of a parameter's statistics.

    Args:
        state: of the parameter, contiguous.
        at: of the first element, a multiple of 256.
        saved: moments [n], and exponents [2, ceil(n / 256)] where they are fp16.
    """
    stats_dtype = state["exp_avg"].dtype
    moved = {key: saved[key] for key in saved if key.startswith("exp")}
    if moved["exp_avg"].dtype is not stats_dtype:
        first, second = states.moments(moved)
        moved = states.encoded(first, second, stats_dtype)
    for key, value in moved.items():
        if key == "exponents":
            blocks = slice(at // BLOCK, at // BLOCK + value.shape[1])
            state[key][:, blocks].copy_(value)
        else:
            _stretch(state[key], at, len(value)).copy_(value)


def _stretch(tensor: Tensor, at: int, count: int) -> Tensor:
    return tensor.detach().view(-1).narrow(0, at, count)

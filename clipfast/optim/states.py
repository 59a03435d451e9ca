"""The state FusedAdamW keeps for a parameter: its formats, their repair, and changing between them.

    key             statistics in fp16           in bf16        in fp32
    step            fp32 [], updates made        same           same
    exp_avg         fp16 codes of m              m in bf16      m
    exp_avg_sqrt    fp16 codes of sqrt(v)        sqrt(v), bf16  -
    exp_avg_sq      -                            -              v
    exponents       int8 [2, ceil(n / 256)]      -              -

and for a parameter in half precision whose exact fp32 weight is kept, one of

    master          fp32: the weight; the parameter is its nearest value
    remainder       int16: with the bf16 parameter it gives the weight

Tensors other than step and exponents have the parameter's shape and strides. torch and DeepSpeed
cast optimizer states to other types when they load a checkpoint, so what a state holds is decided
by its keys, and its types are put right where that loses nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipfast.devices import is_capturing
from clipfast.ops.adamw import BLOCK, decode, encode, follow, join_master, split_master

State = dict[str, Any]

STATS_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WEIGHTS = ("fp32", "remainder", "stochastic")
GRIDS = {None: "", torch.bfloat16: "bf16", torch.float16: "fp16"}
HALVES = (torch.float16, torch.bfloat16)
MASTER_KEYS = {torch.float32: "master", torch.int16: "remainder"}

# The types from which a value of the type on the left comes back unchanged.
_WIDER = {
    torch.float16: (torch.float32, torch.float64),
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float32: (torch.float64,),
    torch.int16: (torch.int32, torch.int64, torch.float32, torch.float64),
    torch.int8: (torch.int16, torch.int32, torch.int64, *STATS_DTYPES, torch.float64),
}


def master_dtype(
    param_dtype: torch.dtype, weights: str, weights_dtype: torch.dtype | None
) -> torch.dtype | None:
    """What is kept beside a parameter for its exact weight.

    Args:
        param_dtype: of the parameter.
        weights: "fp32", "remainder" or "stochastic".
        weights_dtype: the grid of an fp32 parameter with stochastic weights.

    Returns:
        torch.float32 (a master), torch.int16 (a remainder), or None.

    Raises:
        TypeError: the parameter is of a type that FusedAdamW does not update.
        ValueError: the combination has no meaning.
    """
    if param_dtype not in STATS_DTYPES:
        raise TypeError(
            f"FusedAdamW updates fp32, bf16 and fp16 parameters, got one of {param_dtype}; "
            f"leave it to torch.optim.AdamW"
        )
    if weights == "stochastic":
        if param_dtype is torch.float32 and weights_dtype is None:
            raise ValueError(
                'weights="stochastic" expects a bf16 or fp16 parameter, got one of torch.float32; '
                "either cast the parameter (module.to(torch.bfloat16)), or give "
                "weights_dtype=torch.bfloat16 (or torch.float16), the grid that a parameter kept "
                "in fp32 is rounded to"
            )
        return None
    if param_dtype is torch.float32:
        return None
    if weights == "fp32":
        return torch.float32
    if param_dtype is torch.float16:
        raise ValueError(
            'weights="remainder" expects a bf16 or fp32 parameter, got one of torch.float16, which '
            'has another exponent than the fp32 weight; use weights="fp32" (a master, 4 bytes) '
            'or "stochastic"'
        )
    return torch.int16


def state_bytes_per_parameter(
    stats_dtype: torch.dtype, weights: str, param_dtype: torch.dtype
) -> float:
    """Bytes that the optimizer keeps for each element beside the parameter itself.

    Args:
        stats_dtype: torch.float16, torch.bfloat16 or torch.float32.
        weights: "fp32", "remainder" or "stochastic".
        param_dtype: of the parameter as the optimizer gets it.

    Returns:
        Bytes, the int8 exponents of fp16 statistics included; without the step count and without
        the rest of a tensor's last block of 256, which vanish in tensors of some size.

    Raises:
        TypeError, ValueError: there is no such combination.
    """
    if stats_dtype not in STATS_DTYPES:
        raise ValueError(f"expected a stats_dtype of {STATS_DTYPES}, got {stats_dtype}")
    grid = torch.bfloat16 if param_dtype is torch.float32 else None
    kept = master_dtype(param_dtype, weights, grid)
    exponents = 2 / BLOCK if stats_dtype is torch.float16 else 0
    return 2 * stats_dtype.itemsize + exponents + (kept.itemsize if kept else 0)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each place once, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def same_order(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold their elements in the same order."""
    return a.stride() == b.stride() or all(
        size == 1 or left == right
        for size, left, right in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def in_order_of(param: Tensor, value: Tensor) -> Tensor:
    """A copy of value on the parameter's device, with its strides and in value's own type."""
    if value.shape != param.shape:
        raise ValueError(
            f"expected an optimizer state of the parameter's shape {tuple(param.shape)}, got "
            f"{tuple(value.shape)}; the checkpoint belongs to another model or partition"
        )
    copy = torch.empty_like(param, dtype=value.dtype, memory_format=torch.preserve_format)
    return copy.copy_(value)


def new_statistics(param: Tensor, stats_dtype: torch.dtype) -> State:
    """Statistics before the first update: all zero.

    Raises:
        ValueError: the parameter's elements overlap or leave gaps.
    """
    _check_dense(param)

    def zeros() -> Tensor:
        return torch.zeros_like(param, dtype=stats_dtype, memory_format=torch.preserve_format)

    state = {"step": torch.zeros((), dtype=torch.float32, device=param.device)}
    state["exp_avg"] = zeros()
    state[_second(stats_dtype)] = zeros()
    if stats_dtype is torch.float16:
        shape = (2, -(-param.numel() // BLOCK))
        state["exponents"] = torch.zeros(shape, dtype=torch.int8, device=param.device)
    return state


def fits(param: Tensor, state: State, stats_dtype: torch.dtype, kept: torch.dtype | None) -> bool:
    """Whether the operator can take the state as it is; quick, for every parameter of every step.

    Args:
        param: the parameter.
        state: its state.
        stats_dtype: what the statistics should be.
        kept: master_dtype of the parameter.
    """
    first = state.get("exp_avg")
    if first is None or first.dtype is not stats_dtype or first.stride() != param.stride():
        return False
    second = state.get("exp_avg_sq" if stats_dtype is torch.float32 else "exp_avg_sqrt")
    if second is None or second.dtype is not stats_dtype or first.shape != param.shape:
        return False
    device = param.device
    if first.device != device or second.device != device:
        return False
    exponents = state.get("exponents")
    if (exponents is None) == (stats_dtype is torch.float16):
        return False
    if exponents is not None and (exponents.dtype is not torch.int8 or exponents.device != device):
        return False
    step = state["step"]
    if not isinstance(step, Tensor) or step.dtype is not torch.float32 or step.device != device:
        return False
    if kept is None:
        return "master" not in state and "remainder" not in state
    master = state.get(MASTER_KEYS[kept])
    return master is not None and master.dtype is kept and master.device == device


def fit(param: Tensor, state: State, stats_dtype: torch.dtype, kept: torch.dtype | None) -> None:
    """Makes the state what the operator takes, in place: creates, repairs or re-encodes it.

    The exact weight passes over: a master becomes a remainder, and back; where neither is kept any
    more an fp32 parameter takes it up and a half one stays as it is, its nearest value.

    Args: as of ``fits``.

    Raises:
        ValueError: the state lost bits on its way, or does not belong to this parameter.
        RuntimeError: a CUDA graph is under capture. Its replays would begin with new states anew.
    """
    if is_capturing(param.device):
        raise RuntimeError(
            "FusedAdamW makes its states in the first step, which a CUDA graph would repeat in "
            "every replay: take a step before the capture"
        )
    if not any(key in state for key in ("exp_avg", "exp_avg_sq", "exp_avg_sqrt")):
        weight = {key: state[key] for key in ("master", "remainder") if key in state}
        state.clear()
        state.update(new_statistics(param, stats_dtype), **weight)
    fit_statistics(param, state, stats_dtype)
    _fit_weight(param, state, kept)


def fit_statistics(
    param: Tensor, state: State, stats_dtype: torch.dtype, from_torch: bool = False
) -> None:
    """The part of ``fit`` that concerns step, moments and exponents.

    Args:
        from_torch: fp32 statistics may come in half precision, as torch.optim.AdamW has them for a
            parameter in half precision; nothing was lost on their way.
    """
    _check_dense(param)
    _restore_step(param, state)
    saved = _format(state)
    if not (from_torch and saved is torch.float32):
        state.update(_restored(state))
    first, second = state["exp_avg"], state[_second(saved)]
    ordered = all(
        value.shape == param.shape and same_order(value, param) for value in (first, second)
    )
    # The blocks of fp16 codes follow their order in memory: in another order they are others.
    if saved is stats_dtype and (ordered or saved is not torch.float16):
        for key in ("exp_avg", _second(saved)):
            if not _lies_like(state[key], param):
                state[key] = in_order_of(param, state[key])
            state[key] = state[key].to(saved)
        if saved is torch.float16:
            exponents = state["exponents"].to(param.device)
            state["exponents"] = _shaped(exponents, (2, -(-param.numel() // BLOCK)))
        return
    first, second = (in_order_of(param, value) for value in moments(state))
    for key in ("exp_avg", _second(saved), "exponents"):
        state.pop(key, None)
    state.update(encoded(first, second, stats_dtype))


def moments(state: State) -> tuple[Tensor, Tensor]:
    """m and v of a state in any format: new fp32 tensors, in the order of the state's."""
    saved = _format(state)
    if saved is torch.float32:
        first, second = state["exp_avg"], state["exp_avg_sq"]
        return first.to(torch.float32, copy=True), second.to(torch.float32, copy=True)
    state = _restored(state)
    first, second = state["exp_avg"], state["exp_avg_sqrt"]
    exponents = state.get("exponents")
    if exponents is None:
        return decode(first, None), decode(second, None).square()
    exponents = _shaped(exponents, (2, -(-first.numel() // BLOCK)))
    return decode(first, exponents[0]), decode(second, exponents[1]).square()


def encoded(first: Tensor, second: Tensor, stats_dtype: torch.dtype) -> State:
    """The statistics of a state, rounded to nearest.

    Args:
        first: m, fp32.
        second: v, fp32.
        stats_dtype: torch.float16, torch.bfloat16 or torch.float32.
    """
    if stats_dtype is torch.float32:
        return {"exp_avg": first, "exp_avg_sq": second}
    state = {}
    state["exp_avg"], first_exponents = encode(first, stats_dtype)
    state["exp_avg_sqrt"], second_exponents = encode(second.sqrt(), stats_dtype)
    if first_exponents is not None and second_exponents is not None:
        state["exponents"] = torch.stack([first_exponents, second_exponents])
    return state


def exact_weight(param: Tensor, state: State) -> Tensor:
    """The fp32 weight that the parameter and its state stand for: a copy."""
    if "master" in state:
        master = restore(state, "master", torch.float32)
        if param.dtype in HALVES and master.shape == param.shape:
            return follow(param.detach(), master)
        return master.clone()
    if "remainder" in state:
        return _joined(param, state)
    return param.detach().to(torch.float32, copy=True)


def restore(state: State, key: str, dtype: torch.dtype) -> Tensor:
    """One of a state's tensors in its own type again.

    Args:
        state: of a parameter.
        key: which tensor.
        dtype: the type it was made in.

    Returns:
        The tensor, of ``dtype``.

    Raises:
        ValueError: a cast has cost it bits.
    """
    value = state[key]
    if value.dtype is dtype:
        return value
    narrow = value.to(dtype)
    if value.dtype not in _WIDER[dtype] or not _equal(narrow.to(value.dtype), value):
        raise ValueError(
            f"expected the optimizer state {key!r} of shape {tuple(value.shape)} in {dtype}, got "
            f"{value.dtype}: it was cast on its way and has lost bits. Load the checkpoint with "
            f"FusedAdamW.load_state_dict, which casts nothing, or discard the state "
            f"(optimizer.state.clear()) to start the statistics anew"
        )
    return narrow


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (b != b)).all())


def _shaped(exponents: Tensor, shape: tuple[int, int]) -> Tensor:
    if exponents.numel() != shape[0] * shape[1]:
        raise ValueError(
            f"expected exponents of shape {shape}, got {tuple(exponents.shape)}; the checkpoint "
            f"belongs to another model or partition"
        )
    return exponents.reshape(shape)


def _second(stats_dtype: torch.dtype) -> str:
    return "exp_avg_sq" if stats_dtype is torch.float32 else "exp_avg_sqrt"


def _format(state: State) -> torch.dtype:
    """The type that a state's statistics were made in."""
    if "exp_avg" in state:
        if "exp_avg_sqrt" in state:
            return torch.float16 if "exponents" in state else torch.bfloat16
        if "exp_avg_sq" in state:
            return torch.float32
    raise ValueError(
        f"expected an optimizer state with exp_avg and exp_avg_sqrt (FusedAdamW) or exp_avg_sq "
        f"(FusedAdamW, torch.optim.AdamW), got the keys {sorted(map(str, state))}"
    )


def _lies_like(value: Tensor, param: Tensor) -> bool:
    return (value.shape, value.stride(), value.device) == (
        param.shape,
        param.stride(),
        param.device,
    )


def _restored(state: State) -> State:
    """The tensors of a state's statistics, in the types that they were made in."""
    saved = _format(state)
    dtypes = {"exp_avg": saved, _second(saved): saved}
    if saved is torch.float16:
        dtypes["exponents"] = torch.int8
    return {key: restore(state, key, dtype) for key, dtype in dtypes.items()}


def _restore_step(param: Tensor, state: State) -> None:
    step = state.get("step", 0)
    if not isinstance(step, Tensor):
        step = torch.tensor(float(step))
    # Whole numbers that the type still holds, all of them up to this one.
    limit = {torch.bfloat16: 256, torch.float16: 2048}.get(step.dtype)
    if limit is not None and float(step) >= limit:
        raise ValueError(
            f"expected the optimizer state 'step' in torch.float32, got {float(step)} in "
            f"{step.dtype}, which cannot count so far; load the checkpoint with "
            f"FusedAdamW.load_state_dict, which casts nothing"
        )
    state["step"] = step.to(dtype=torch.float32, device=param.device).reshape(())


def _joined(param: Tensor, state: State) -> Tensor:
    remainder = restore(state, "remainder", torch.int16)
    weight = param.detach().to(torch.bfloat16)
    if not _equal(weight.to(param.dtype), param.detach()):
        raise ValueError(
            f"expected the bf16 parameter that its state's remainder belongs to, got one of "
            f"{param.dtype} with other values; load the model's checkpoint before the next step, "
            f"or discard the state (optimizer.state.clear())"
        )
    return join_master(weight, remainder)


def _fit_weight(param: Tensor, state: State, kept: torch.dtype | None) -> None:
    for key in ("master", "remainder"):
        if key in state and not _lies_like(state[key], param):
            state[key] = in_order_of(param, state[key])
    if kept is torch.float32:
        if "master" in state:
            state["master"] = restore(state, "master", torch.float32)
            return
        state["master"] = exact_weight(param, state)
        if state.pop("remainder", None) is not None:
            # Ties went away from zero there, and go to even here.
            param.copy_(state["master"])
    elif kept is torch.int16 and "master" in state:
        high, state["remainder"] = split_master(exact_weight(param, state))
        param.copy_(high)
        del state["master"]
    elif kept is torch.int16:
        if "remainder" in state:
            state["remainder"] = restore(state, "remainder", torch.int16)
        else:
            state["remainder"] = torch.zeros_like(
                param, dtype=torch.int16, memory_format=torch.preserve_format
            )
    else:
        if param.dtype is torch.float32 and ("master" in state or "remainder" in state):
            param.copy_(exact_weight(param, state))
        state.pop("master", None)
        state.pop("remainder", None)


def _check_dense(param: Tensor) -> None:
    if not is_dense(param):
        raise ValueError(
            f"expected a parameter whose elements fill one stretch of memory, got shape "
            f"{tuple(param.shape)} with strides {param.stride()}; make it with "
            f"param.clone(memory_format=torch.contiguous_format)"
        )

"""Whether the rounding of weights and statistics is unbiased: the mean of many draws of one value.

Every draw is the optimizer's own: a tensor filled with one value is updated so that exactly this
value is to be stored, and each element has random bits of its own.

- weights in half precision: decay carries a representable weight to the value;
- fp32 weights on the grid of a half type: a gradient of zero leaves the value;
- m and sqrt(v): with betas of 0 both are the gradient's magnitude. float16 blocks get a first
  element of 2^14, so that their scale is 1 and codes are the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.parts.common.harness import Row
from clipfast.ops.adamw import BLOCK, decode
from clipfast.optim.fused_adamw import FusedAdamW

# |z| of a normal variable exceeds this once in 150,000.
LIMIT_Z = 4.5
# Where a value lies between two neighbours, in units of their distance; 1/2 is a tie.
FRACTIONS = (0.0, 1 / 16, 0.25, 0.5, 0.875)
_LARGEST = {torch.float16: 65504.0, torch.bfloat16: torch.finfo(torch.bfloat16).max}

Draw = Callable[[float, int, dict[str, Any]], tuple[Tensor, float]]


@dataclass(frozen=True)
class Format:
    """Somewhere a value is rounded.

    Attributes:
        name: As in the table.
        dtype: Of the grid.
        draw: (value, draws, seed and rounding) -> what was stored, and the value that was to be.
        is_code: Whether values beyond the type's range cannot come, being scaled.
    """

    name: str
    dtype: torch.dtype
    draw: Draw
    is_code: bool = False


def _grid(dtype: torch.dtype) -> Draw:
    def draw(value: float, draws: int, options: dict[str, Any]) -> tuple[Tensor, float]:
        weight = torch.full((draws,), value)
        weight.grad = torch.zeros(draws)
        FusedAdamW(
            [weight], weight_decay=0.0, weights="stochastic", weights_dtype=dtype, **options
        ).step()
        return weight.double(), value

    return draw


def _half_weight(dtype: torch.dtype) -> Draw:
    def draw(value: float, draws: int, options: dict[str, Any]) -> tuple[Tensor, float]:
        upper = neighbours(value, dtype)[1]
        weight = torch.full((draws,), upper, dtype=dtype)
        weight.grad = torch.zeros(draws, dtype=dtype)
        lr = 1 - value / upper if upper else 0.0
        FusedAdamW([weight], lr=lr, weight_decay=1.0, weights="stochastic", **options).step()
        decayed = np.float32(np.float32(1 - lr) * np.float32(upper))
        return weight.double(), float(decayed)

    return draw


def _statistic(dtype: torch.dtype, key: str, row: int) -> Draw:
    def draw(value: float, draws: int, options: dict[str, Any]) -> tuple[Tensor, float]:
        blocks = -(-draws // (BLOCK - 1))
        weight = torch.zeros(blocks, BLOCK)
        weight.grad = torch.full((blocks, BLOCK), value)
        weight.grad[:, 0] = 2.0**14
        optimizer = FusedAdamW([weight], betas=(0.0, 0.0), stats_dtype=dtype, **options)
        optimizer.step()
        state = optimizer.state[weight]
        exponents = state["exponents"][row] if dtype == torch.float16 else None
        return decode(state[key], exponents)[:, 1:].reshape(-1)[:draws].double(), value

    return draw


FORMATS = (
    Format("fp16 weights", torch.float16, _half_weight(torch.float16)),
    Format("bf16 weights", torch.bfloat16, _half_weight(torch.bfloat16)),
    Format("fp32 on fp16's grid", torch.float16, _grid(torch.float16)),
    Format("fp32 on bf16's grid", torch.bfloat16, _grid(torch.bfloat16)),
    Format("fp16 m", torch.float16, _statistic(torch.float16, "exp_avg", 0), True),
    Format("fp16 sqrt(v)", torch.float16, _statistic(torch.float16, "exp_avg_sqrt", 1), True),
    Format("bf16 m", torch.bfloat16, _statistic(torch.bfloat16, "exp_avg", 0), True),
    Format("bf16 sqrt(v)", torch.bfloat16, _statistic(torch.bfloat16, "exp_avg_sqrt", 1), True),
)


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """The representable values around a positive one; twice itself where it is representable."""
    near = torch.tensor(value, dtype=torch.float32).to(dtype)
    if float(near) == value:
        return value, value
    bits = near.view(torch.int16)
    other = (bits + 1 if float(near) < value else bits - 1).view(dtype)
    low, high = sorted((float(near), float(other)))
    return low, high


def values(form: Format) -> Iterator[tuple[str, float]]:
    """What is rounded: kind and value, all exact in float32.

    Normal numbers at both ends of a binade, subnormal ones of the fp16 grid (bf16's begin where
    those of float32 do) and, with the fraction alone, those under its smallest one; beyond the
    largest number.
    """
    spacing = torch.finfo(form.dtype).eps
    places = [("normal", 1.0, spacing), ("end of a binade", 2.0 - spacing, spacing)]
    if form.dtype == torch.float16:
        tiny = 2.0**-24
        places += [("subnormal", 37 * tiny, tiny), ("under the smallest", 0.0, tiny)]
    for kind, base, unit in places:
        for fraction in FRACTIONS:
            yield kind, base + fraction * unit
    if not form.is_code and form.name.startswith("fp32"):
        # Its float32 neighbour, for bf16's largest is as large as float32's but for its last bits.
        yield "beyond the largest", float(np.nextafter(np.float32(_LARGEST[form.dtype]), np.inf))


def measure(draws: int, *, rounding: str = "stochastic") -> list[Row]:
    """Draw each value in each format.

    Args:
        draws: Of each value.
        rounding: "nearest" for the control.

    Returns:
        One row per value: ``bias_ulp``, the mean's distance from the value in units of its
        neighbours' distance, and ``z``, the same by its standard error; ``passed``: unbiased within
        :data:`LIMIT_Z`, and nothing but neighbours drawn.
    """
    rows = []
    for form in FORMATS:
        for kind, wanted in values(form):
            # One seed per value, or all of them would see the same random bits.
            options = {"seed": len(rows), "rounding": rounding}
            got, value = form.draw(wanted, draws, options)
            low, high = neighbours(value, form.dtype)
            is_beyond = kind == "beyond the largest"
            if is_beyond:
                low = high = _LARGEST[form.dtype]
            unit = high - low
            fraction = (value - low) / unit if unit else 0.0
            share = float((got == high).double().mean()) if unit else 0.0
            error = math.sqrt(fraction * (1 - fraction) / draws)
            z = (share - fraction) / error if unit else 0.0
            strays = int(((got != low) & (got != high)).sum())
            rows.append(
                {
                    "name": form.name,
                    "kind": kind,
                    "value": value,
                    "fraction": fraction,
                    "draws": draws,
                    "rounding": rounding,
                    "share_up": share,
                    "bias_ulp": share - fraction,
                    "z": z,
                    "strays": strays,
                    "passed": strays == 0 and abs(z) <= LIMIT_Z,
                }
            )
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """One row per format and kind of value, from those of :func:`measure`.

    Returns:
        ``values``, the largest ``bias_ulp``, that of a tie in ``tie_ulp``, the largest ``z``, all
        without their signs; the sum of ``strays``; whether all ``passed``.
    """
    rows_of: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        rows_of.setdefault((row["name"], row["kind"]), []).append(row)
    summaries = []
    for (name, kind), chosen in rows_of.items():
        ties = [abs(row["bias_ulp"]) for row in chosen if abs(row["fraction"] - 0.5) < 1e-3]
        summaries.append(
            {
                "name": name,
                "kind": kind,
                "values": len(chosen),
                "draws": chosen[0]["draws"],
                "rounding": chosen[0]["rounding"],
                "bias_ulp": max(abs(row["bias_ulp"]) for row in chosen),
                "tie_ulp": max(ties, default=None),
                "z": max(abs(row["z"]) for row in chosen),
                "strays": sum(row["strays"] for row in chosen),
                "passed": all(row["passed"] for row in chosen),
                "checked": True,
            }
        )
    return summaries


def table(summaries: list[Row]) -> str:
    """One line per format and kind of value: the largest bias of its values, and that of a tie."""
    lines = [f"{'':22}{'':20}{'values':>8}{'largest |bias|, ulp':>21}{'of a tie':>10}{'|z|':>7}"]
    for row in summaries:
        tie = "" if row["tie_ulp"] is None else f"{row['tie_ulp']:.5f}"
        verdict = "passes" if row["passed"] else "fails"
        verdict += f", {row['strays']} are no neighbours" if row["strays"] else ""
        lines.append(
            f"{row['name']:22}{row['kind']:20}{row['values']:8}{row['bias_ulp']:21.5f}{tie:>10}"
            f"{row['z']:7.2f}   {verdict}"
        )
    return "\n".join(lines)

"""Numbers that several languages use are the same in C++, Python and Triton.

They stand in csrc/*/constants.h. Python and Triton have them once each, under a name of their own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clipfast.ops.adamw import formats, random_bits
from clipfast.ops.attention_pool import MAX_TRITON_SAMPLES, MAX_TRITON_TOKENS
from clipfast.ops.products import library
from clipfast.ops.quick_gelu import plain as quick_gelu
from tests.needs import need

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
# Of float64, which Triton's kernels leave to C++.
CPP_ALONE = {"kShiftMarginDouble"}


def read_header(room: str) -> dict[str, float]:
    """The constants of csrc/<room>/constants.h by name."""
    text = (CSRC / room / "constants.h").read_text()
    found = re.findall(r"^constexpr \w+ (k\w+) = ([^;]+);", text, re.MULTILINE)
    assert len(found) == text.count("constexpr"), "a form of constant that this test cannot read"
    return {name: number(value) for name, value in found}


def number(literal: str) -> float:
    if "p" in literal:
        return float.fromhex(literal.rstrip("f"))
    return float(literal) if "." in literal else int(literal.rstrip("u"), 0)


def adamw_in_python() -> dict[str, float]:
    first, second, weight = random_bits.MULTIPLIERS
    return {
        "kBlock": formats.BLOCK,
        "kDraw": random_bits.DRAW,
        "kRounds": random_bits.ROUNDS,
        "kPhiloxMultiplier0": random_bits.PHILOX_MULTIPLIERS[0],
        "kPhiloxMultiplier1": random_bits.PHILOX_MULTIPLIERS[1],
        "kPhiloxKeyStep0": random_bits.PHILOX_KEY_STEPS[0],
        "kPhiloxKeyStep1": random_bits.PHILOX_KEY_STEPS[1],
        "kFirstMomentMultiplier": first,
        "kSecondMomentMultiplier": second,
        "kWeightMultiplier": weight,
        "kNearest": formats.NEAREST,
        "kTopExponent": formats.TOP_EXPONENT,
        "kSmallestExponent": formats.SMALLEST_EXPONENT,
        "kLargestExponent": formats.LARGEST_EXPONENT,
    }


def quick_gelu_in_python() -> dict[str, float]:
    return {"kSlope": quick_gelu.SLOPE}


def products_in_python() -> dict[str, float]:
    return {"kFewRows": library.FEW_ROWS, "kSomeRows": library.SOME_ROWS}


def in_triton(room: str, name: str) -> float:
    """The one value of a name in the modules of kernels/<room>."""
    modules = [
        importlib.import_module(f"clipfast.kernels.{room}.{path.stem}")
        for path in (ROOT / "kernels" / room).glob("*.py")
        if path.stem != "__init__"
    ]
    found = [getattr(module, name) for module in modules if hasattr(module, name)]
    (value,) = {getattr(number, "value", number) for number in found}
    return value


def quick_gelu_in_triton() -> dict[str, float]:
    return {"kSlope": in_triton("quick_gelu", "SLOPE")}


def rows_in_triton() -> dict[str, float]:
    return {
        "kSmallestSquares": in_triton("common", "SMALLEST_SQUARES"),
        "kSmallestSquaresDouble": in_triton("common", "SMALLEST_SQUARES_DOUBLE"),
    }


def contrastive_in_triton() -> dict[str, float]:
    log2e = in_triton("contrastive", "LOG2E")
    assert in_triton("contrastive", "LN2") * log2e == pytest.approx(1.0, rel=1e-15)
    return {
        "kLog2e": log2e,
        "kShiftMargin": in_triton("contrastive", "SHIFT_MARGIN"),
        "kSmallestSum": in_triton("contrastive", "SMALLEST_SUM"),
        "kKeptSteps": in_triton("contrastive", "KEPT_STEPS"),
        "kHalfWeightScale": in_triton("contrastive", "HALF_WEIGHT_SCALE"),
    }


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("adamw", adamw_in_python),
        ("quick_gelu", quick_gelu_in_python),
        ("products", products_in_python),
        ("quick_gelu", quick_gelu_in_triton),
        ("common", rows_in_triton),
        ("contrastive", contrastive_in_triton),
    ],
)
def test_constants_are_the_same_in_every_language(room: str, others: Callable) -> None:
    if others.__name__.endswith("triton"):
        need("triton")
    in_cpp = read_header(room)
    assert {name: in_cpp[name] for name in in_cpp if name not in CPP_ALONE} == others()


def test_constants_headers_are_all_compared() -> None:
    rooms = {path.parent.name for path in CSRC.rglob("constants.h")}
    assert rooms == {"adamw", "common", "contrastive", "products", "quick_gelu"}


def test_constants_of_attention_pool_are_the_launchers() -> None:
    need("triton")
    assert in_triton("attention_pool", "MAX_TOKENS") == MAX_TRITON_TOKENS == 256
    assert MAX_TRITON_SAMPLES == 2**16 - 1  # CUDA's bound of a grid's second dimension

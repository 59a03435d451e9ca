"""fp32 products on a GPU are in full or in TF32, as torch's own switch says.

Without a GPU: what the switch's spellings mean, who is chosen, and which instructions the kernels
are compiled to.
"""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch

from clipfast.kernels.common.device import FUSED, dot_precision
from clipfast.ops.contrastive import impls
from tests.needs import need

MATMUL = torch.backends.cuda.matmul
has_newer = pytest.mark.skipif(
    not hasattr(MATMUL, "fp32_precision"), reason="torch 2.9 brought fp32_precision"
)


@pytest.fixture(autouse=True)
def _switch_restored():
    newer = getattr(MATMUL, "fp32_precision", None)
    everywhere = getattr(torch.backends, "fp32_precision", None)
    yield
    if everywhere is not None:
        torch.backends.fp32_precision = everywhere
    torch.set_float32_matmul_precision("highest")
    if newer is not None:
        MATMUL.fp32_precision = newer


def set_newer(value):
    MATMUL.fp32_precision = value


def set_everywhere(value):
    MATMUL.fp32_precision = "none"
    torch.backends.fp32_precision = value


def set_older(value):
    MATMUL.allow_tf32 = value


SPELLINGS = [
    (torch.set_float32_matmul_precision, "highest", "ieee"),
    (torch.set_float32_matmul_precision, "high", "tf32"),
    (torch.set_float32_matmul_precision, "medium", "tf32"),
    (set_older, True, "tf32"),
    (set_older, False, "ieee"),
    pytest.param(set_newer, "tf32", "tf32", marks=has_newer),
    pytest.param(set_newer, "ieee", "ieee", marks=has_newer),
    pytest.param(set_everywhere, "tf32", "tf32", marks=has_newer),
]


@pytest.mark.parametrize(("set_to", "value", "expected"), SPELLINGS)
def test_fp32_products_follow_every_spelling_of_torchs_switch(set_to, value, expected):
    set_to(value)
    assert dot_precision(torch.float32) == expected
    assert dot_precision(torch.bfloat16) == "ieee"


def test_fp32_products_are_in_full_by_torchs_default():
    # In a process of its own: here other tests may have set the switch.
    code = "import torch; from clipfast.kernels.common.device import dot_precision; "
    code += "print(dot_precision(torch.float32))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ieee"], done.stderr


@pytest.mark.parametrize(
    ("has_cuda", "switch", "dtype", "autocast", "expected"),
    [
        (True, "highest", torch.float32, False, "cuda"),
        (False, "highest", torch.float32, False, "triton"),
        (True, "high", torch.float32, False, "triton"),
        (True, "highest", torch.float32, True, "triton"),
        (True, "highest", torch.bfloat16, False, "triton"),
    ],
)
def test_loss_takes_cublas_for_fp32_in_full(
    monkeypatch, has_cuda, switch, dtype, autocast, expected
):
    listed = ["triton", *["cuda"] * has_cuda, "plain"]
    monkeypatch.setattr(impls, "available_impls", lambda device: listed)
    features = types.SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(4, 8))
    torch.set_float32_matmul_precision(switch)
    assert impls.choose("auto", features, autocast).impl == expected
    assert impls.choose("triton", features, autocast).impl == "triton"


def compiled(kernel, arch, constants, *, floats=()):
    """PTX of a kernel whose pointers are all to fp32."""
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {
        name: "*fp32" if name.endswith("_ptr") else "fp32" if name in floats else "i32"
        for name in kernel.arg_names
    } | dict.fromkeys(constants, "constexpr")
    made = compile_source(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": 4, "num_stages": 2, **FUSED},
    )
    return made.asm["ptx"]


def loss_kernels():
    from clipfast.kernels.contrastive import strip
    from clipfast.kernels.contrastive.softmax_rule import SOFTMAX

    tile = {"D": 64, "BLOCK_B": 64, "BLOCK_G": 32, "BLOCK_D": 32, "GROUP": 8, "Q_SCALE": 1.0}
    rule = {"BASE": SOFTMAX.base, "TERMS": SOFTMAX.terms, "WEIGHTS": SOFTMAX.weights}
    nothing = dict.fromkeys(("numbers_ptr", "kept_ptr"))
    return {
        kernel: {**tile, **rule, **nothing}
        for kernel in (strip.statistics_kernel, strip.weights_kernel)
    }


def pool_kernels():
    from clipfast.kernels.attention_pool import tokens

    tile = {"N": 49, "C": 64, "H": 16, "BLOCK_N": 64, "BLOCK_H": 16, "BLOCK_C": 32}
    tile |= {"IS_SPLIT": False, "COLUMNS": 64}
    return {
        kernel: tile
        for kernel in (
            tokens.attend_kernel,
            tokens.attend_backward_kernel,
            tokens.grad_tokens_kernel,
        )
    }


@pytest.mark.parametrize("switch", ["highest", "high"])
@pytest.mark.parametrize(
    ("kernels", "arch"), [(loss_kernels, 80), (loss_kernels, 90), (pool_kernels, 90)]
)
def test_fp32_kernels_take_tf32_only_where_told(kernels, switch, arch):
    need("triton")
    torch.set_float32_matmul_precision(switch)
    precision = {"PRECISION": dot_precision(torch.float32)}
    for kernel, constants in kernels().items():
        ptx = compiled(kernel, arch, constants | precision, floats=("scale", "log_columns"))
        name = kernel.fn.__name__
        assert (".tf32" in ptx) == (switch == "high"), name
        # In full there is no instruction of tensor cores at all.
        assert ("mma." in ptx) == (switch == "high"), name


def test_loss_hands_the_switch_to_its_kernels():
    need("triton")
    from clipfast.kernels.contrastive.walk import Strip

    strip = Strip(*(torch.zeros(4, 8) for _ in range(2)), *(torch.zeros(4) for _ in range(4)), 0)
    for switch, expected in (("highest", "ieee"), ("high", "tf32")):
        torch.set_float32_matmul_precision(switch)
        assert strip.options(strip.config("statistics"))["PRECISION"] == expected

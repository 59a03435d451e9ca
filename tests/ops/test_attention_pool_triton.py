"""Attention pooling in Triton: interpreted, on a GPU, and compiled ahead of time without one."""

from __future__ import annotations

import pytest
import torch

from tests.ops import attention_pool_triton_cases as cases
from tests.ops.test_contrastive_triton import SHARED_KIB, compile_for
from tests.ops.triton_tools import interpret

# The towers' pools: tokens, channels, heads.
HEADS = {
    "RN50": (49, 2048, 32),
    "RN50x4": (81, 2560, 40),
    "RN50x16": (144, 3072, 48),
    "RN50x64": (196, 4096, 64),
}
ELEMENTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PROCESSORS = {80: 108, 90: 132}


@pytest.fixture(scope="module")
def interpreted():
    return interpret("tests.ops.attention_pool_triton_cases")


@pytest.mark.parametrize("case", cases.CASES)
def test_triton_attention_pool_interpreted_agrees_with_fp64(case, interpreted):
    failures, errors = interpreted
    assert case in failures, errors
    assert not failures[case], failures[case]


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.CASES)
def test_triton_attention_pool_on_gpu_agrees_with_fp64(case):
    getattr(cases, f"case_{case}")("cuda")


def compiled_kernels(arch, element, name, batch):
    """(kernel's name, tile, what compile_for gives) of every kernel of a pool."""
    from clipfast.kernels.attention_pool import configs
    from clipfast.kernels.attention_pool import tokens as kernels

    tokens, channels, heads = HEADS[name]
    dtype, processors = ELEMENTS[element], PROCESSORS[arch]
    of_x = "x positions absorbed grad_context context grad_absorbed grad_token dx"
    types = {f"{key}_ptr": f"*{element}" for key in of_x.split()}
    single = "token attention grad_scores grad_first"
    types |= {f"{key}_ptr": "*fp32" for key in single.split()} | {"scale": "fp32"}
    walk = [
        configs.attend_tile(tokens, heads, batch, dtype, processors, backward)
        for backward in (False, True)
    ]
    constants = {
        **{"N": tokens, "C": channels, "H": heads, "COLUMNS": channels},
        **{"IS_SPLIT": dtype.itemsize == 2, "PRECISION": "ieee"},
    }
    for kernel, shape in (
        (kernels.mean_token_kernel, configs.Tile(32, 1, 64, 4, 2)),
        (kernels.attend_kernel, walk[0]),
        (kernels.attend_backward_kernel, walk[1]),
        (kernels.grad_tokens_kernel, configs.grad_tokens_tile(tokens, heads, dtype)),
    ):
        options = shape.options()
        warps, stages = options.pop("num_warps"), options.pop("num_stages")
        made = compile_for(kernel, arch, types, constants | options, warps, stages)
        yield kernel.__name__, shape, made


# A batch that does not fill the device has other tiles.
@pytest.mark.parametrize(
    ("arch", "element", "name", "batch"),
    [
        *((arch, "bf16", name, 256) for arch in (80, 90) for name in HEADS),
        *((arch, "bf16", name, 16) for arch in (80, 90) for name in ("RN50", "RN50x64")),
        *((arch, "fp32", name, 256) for arch in (80, 90) for name in ("RN50", "RN50x4")),
        (80, "fp16", "RN50x64", 256),
    ],
)
def test_triton_attention_pool_compiles_without_spills(arch, element, name, batch):
    pytest.importorskip("triton")
    for kernel, shape, (made, registers, spilled) in compiled_kernels(arch, element, name, batch):
        print(
            f"sm_{arch} {element} {name} {batch} {kernel} {shape}: {registers} registers, "
            f"{spilled} B spilled, {made.metadata.shared} B shared"
        )
        assert spilled == 0, (kernel, shape)
        assert made.metadata.shared <= SHARED_KIB[86] * 1024
        assert registers * 32 * shape.num_warps <= 65536
        if element != "fp32" and kernel != "mean_token_kernel":
            assert "mma.sync" in made.asm["ptx"] or "wgmma" in made.asm["ptx"]

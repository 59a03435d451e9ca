"""Attention pooling in Triton: interpreted, on a GPU, and compiled ahead of time without one."""

from __future__ import annotations

import pytest
import torch

from tests.needs import need
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
PROCESSORS = {80: 108, 86: 84, 90: 132}
# Wide tiles spill and are the fastest that were timed: configs.py has the times. The most seen is
# 5,208 bytes (sm_90, backward, 256 tokens, Triton 3.6), 608 with 32 heads and 256 with 16.
WIDE_SPILLS = {64: 5632, 32: 1024, 16: 320}


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


def is_wide(arch, element, name, backward):
    """Whether a device takes the wide tiles; up to 64 tokens they are the others'."""
    from clipfast.kernels.attention_pool import configs

    needed = configs.WIDE_BACKWARD_BYTES if backward else configs.WIDE_FORWARD_BYTES
    return element != "fp32" and HEADS[name][0] > 64 and SHARED_KIB[arch] * 1024 >= needed


def compiled_kernels(arch, element, name, batch, positions):
    """(kernel's name, tile, what compile_for gives) of every kernel of a pool."""
    from clipfast.kernels.attention_pool import configs
    from clipfast.kernels.attention_pool import tokens as kernels

    tokens, channels, heads = HEADS[name]
    dtype, processors = ELEMENTS[element], PROCESSORS[arch]
    of_x = "x absorbed grad_context context grad_absorbed grad_token dx"
    types = {f"{key}_ptr": f"*{element}" for key in of_x.split()}
    single = "token attention grad_scores grad_first"
    types |= {f"{key}_ptr": "*fp32" for key in single.split()} | {"scale": "fp32"}
    types["positions_ptr"] = f"*{positions}"
    walk = [
        configs.attend_tile(
            tokens, heads, batch, dtype, processors, SHARED_KIB[arch] * 1024, backward
        )
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


FURTHER = [
    *((90, "bf16", name, 256, "bf16") for name in HEADS if name != "RN50x64"),
    *((80, "bf16", name, 256, "bf16") for name in HEADS),
    *((90, "bf16", name, 16, "bf16") for name in ("RN50", "RN50x64")),
    (80, "bf16", "RN50x64", 16, "bf16"),
    *((90, "fp32", name, 256, "fp32") for name in ("RN50", "RN50x4")),
    (80, "fp32", "RN50", 256, "fp32"),
    (80, "fp16", "RN50x64", 256, "fp16"),
    *((arch, "bf16", "RN50x64", 256, "fp32") for arch in (80, 90)),
]


# A batch that does not fill the device has other tiles. Under autocast positions are fp32.
@pytest.mark.parametrize(
    ("arch", "element", "name", "batch", "positions"),
    [
        # Wide tiles and narrow ones, both widths of elements, each architecture.
        (90, "bf16", "RN50x64", 256, "bf16"),
        (80, "bf16", "RN50", 16, "bf16"),
        (80, "fp32", "RN50x4", 256, "fp32"),
        (86, "bf16", "RN50x64", 256, "fp32"),
        *(pytest.param(*words, marks=pytest.mark.thorough) for words in FURTHER),
    ],
)
def test_triton_attention_pool_compiles_within_registers_and_shared_memory(
    arch, element, name, batch, positions
):
    need("triton")
    for kernel, shape, made in compiled_kernels(arch, element, name, batch, positions):
        made, registers, spilled = made
        print(
            f"sm_{arch} {element} {name} {batch} {kernel} {shape}: {registers} registers, "
            f"{spilled} B spilled, {made.metadata.shared} B shared"
        )
        walks = {"attend_kernel": False, "attend_backward_kernel": True}
        wide = kernel in walks and is_wide(arch, element, name, walks[kernel])
        assert spilled <= (WIDE_SPILLS[shape.block_h] if wide else 0), (kernel, shape)
        assert made.metadata.shared <= SHARED_KIB[arch if wide else 86] * 1024
        assert registers * 32 * shape.num_warps <= 65536
        if element != "fp32" and kernel != "mean_token_kernel":
            assert "mma.sync" in made.asm["ptx"] or "wgmma" in made.asm["ptx"]


def test_triton_attention_pool_tiles_that_were_timed():
    need("triton")
    from clipfast.kernels.attention_pool import configs

    sizes = (196, 64, 256, torch.bfloat16, 132)
    wide, narrow = SHARED_KIB[90] * 1024, SHARED_KIB[86] * 1024
    assert configs.attend_tile(*sizes, wide, False) == configs.Tile(256, 64, 64, 4, 2)
    assert configs.attend_tile(*sizes, wide, True) == configs.Tile(256, 64, 64, 8, 2)
    for batch in (16, 256):
        for backward in (False, True):
            sizes = (49, 32, batch, torch.bfloat16, 132)
            tiles = {configs.attend_tile(*sizes, most, backward) for most in (wide, narrow)}
            assert len(tiles) == 1, "up to 64 tokens every device takes the same tile"

"""Tile shapes of the contrastive kernels, by architecture; looked up, never tuned in a user's run.

All entries keep to `ptxas -v`: no spilled register (tests/ops/test_contrastive_triton.py keeps it
so at D = 512), and registers and shared memory that let two programs live on one multiprocessor
where that can be had. Two matter more here than in a plain GEMM: the exponentials and sums of a
tile are hidden by another program's products alone.

The half-precision entries of sm_90, except maxima, were timed on one H200, in bf16 on a strip of
32,768 x 32,768 (gradients and kept: on a quarter of its rows). For (128, 128, 64), 4 warps, in ms:

    statistics, D 1,024    group 8: 3 stages 3.80, 2 stages 4.80, 4 stages 4.68; group 16: 3.93
    statistics, D 512      group 8: 2.41     group 16: 2.25
    statistics, kept       group 8: 4.83     group 16: 4.50     (D 1,024)
    gradients, D 1,024     group 8: 1.12     group 16: 1.06

A fourth stage leaves room for one program per multiprocessor, and costs more than it brings. Slower
too are 8 warps (4.45), a side of 64 (5.6 to 5.8) and BLOCK_D 128 (7.38). Sides of 256 gain up to 4%
in gradients and where logits are kept, and lose up to 23% elsewhere. From D 512 to 1,024 statistics
grow by 1.4 to 1.7 ms. What is left at D 0, the epilogue, is 0.6 to 1.0 ms. Q from kept logits takes
0.289 ms with (8, 256) and 0.303 ms with (16, 256). Entries of sm_80, of "default" and of fp32 were
not timed. An entry that is replaced takes effect at the next launch:

    TABLE["sm_90", "statistics", "half"] = Config(128, 128, 64, 8, 8, 3)
"""

from __future__ import annotations

import dataclasses

import torch

from clipfast.kernels.common.device import FUSED
from clipfast.kernels.common.rows import RowTile, tile_shape


@dataclasses.dataclass(frozen=True)
class Config:
    """One kernel's tile: BLOCK_B rows by BLOCK_G columns, BLOCK_D of the width at a time."""

    block_b: int
    block_g: int
    block_d: int
    group: int  # row tiles that run side by side and share columns in L2
    num_warps: int
    num_stages: int  # tiles of x and y in flight

    def options(self) -> dict[str, int]:
        """The launch's keyword arguments of a GEMM kernel."""
        return {
            "BLOCK_B": self.block_b,
            "BLOCK_G": self.block_g,
            "BLOCK_D": self.block_d,
            "GROUP": self.group,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            **FUSED,
        }


KERNELS = ("statistics", "maxima", "gradients", "kept")
"""GEMM with sums, its fallback by maxima, GEMM with Q, and Q from kept logits (no GEMM)."""

_KEPT = Config(16, 256, 16, 1, 4, 1)  # 16-byte accesses, 32 elements per thread
_FP32 = Config(64, 64, 32, 8, 4, 3)

# What an architecture has no entry for stands under "default". Its entries stay within the 99 KiB
# that sm_86, sm_89 and sm_120 grant a program.
TABLE: dict[tuple[str, str, str], Config] = {
    ("sm_90", "statistics", "half"): Config(128, 128, 64, 16, 4, 3),
    ("sm_90", "maxima", "half"): Config(128, 128, 64, 8, 8, 3),
    ("sm_90", "gradients", "half"): Config(128, 128, 64, 16, 4, 3),
    ("sm_90", "kept", "half"): Config(8, 256, 16, 1, 4, 1),
    ("sm_80", "statistics", "half"): Config(128, 128, 32, 8, 4, 4),
    ("sm_80", "maxima", "half"): Config(128, 128, 32, 8, 8, 4),
    ("sm_80", "gradients", "half"): Config(128, 128, 32, 8, 8, 4),
    ("default", "statistics", "half"): Config(128, 128, 32, 8, 8, 3),
    ("default", "maxima", "half"): Config(128, 128, 32, 8, 8, 3),
    ("default", "gradients", "half"): Config(128, 128, 32, 8, 8, 3),
    ("default", "kept", "half"): _KEPT,
    ("default", "statistics", "fp32"): _FP32,
    ("default", "maxima", "fp32"): _FP32,
    ("default", "gradients", "fp32"): _FP32,
    ("default", "kept", "fp32"): _KEPT,
}


def configuration(arch: str, kernel: str, dtype: torch.dtype) -> Config:
    """The tile shape of a kernel.

    Args:
        arch: as from `architecture`.
        kernel: one of KERNELS.
        dtype: of the work features.

    Returns:
        The architecture's entry of TABLE, or the default.
    """
    width = "fp32" if dtype == torch.float32 else "half"
    return TABLE.get((arch, kernel, width)) or TABLE["default", kernel, width]


def architecture(device: torch.device) -> str:
    """The name of a device's architecture as TABLE has it; "default" for what is no GPU."""
    if device.type != "cuda":
        return "default"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def finish_tile(dim: int) -> RowTile:
    """The tile of finish, which holds three rows where other kernels hold one or two.

    Args:
        dim: elements per row.

    Returns:
        The tile, with 16 elements of each row per thread, so that fp64 rows stay in registers too.
    """
    tile = tile_shape(dim)
    return tile._replace(num_warps=min(32, 2 * tile.num_warps))

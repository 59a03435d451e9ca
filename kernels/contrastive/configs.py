"""Tile shapes of the contrastive kernels, by architecture; looked up, never tuned in a user's run.

How the entries were chosen, without a GPU: from `ptxas -v`, no spilled register
(tests/ops/test_contrastive_triton.py keeps it so at D = 512), and registers and shared memory that
let two programs live on one multiprocessor where that can be had. Two matter more here than in a
plain GEMM: at D = 512 the exponentials and sums of a 128 x 128 tile take about half as many cycles
as its tensor-core products, and only another program's products hide them. No entry was timed. An
entry that is replaced takes effect at the next launch:

    TABLE["sm_90", "statistics", "half"] = Config(128, 128, 64, 8, 8, 3)
"""

from __future__ import annotations

import dataclasses

import torch

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

"""What ``adamw.py`` compares: forms of ``clipfast.FusedAdamW``, and its peers.

A contender says what one step has to move an element, each thing once, from its types:

    weights and statistics are read and written, gradients read; a master or remainder is read and
    written; scales are one byte per block of 256; a check of the gradients reads them once more

A peer that makes several passes, or writes intermediate results, moves more than is counted.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parts.common.contest import NotMeasured
from clipfast.ops.adamw import BLOCK
from clipfast.optim.fused_adamw import FusedAdamW

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.98), 1e-8, 0.2
_COMMON = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}

Build = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Contender:
    """An optimizer in one arrangement.

    Attributes:
        key: For the command line.
        name: As in the table.
        build: From parameters.
        dtype: Of weights and gradients.
        stats_bytes: Of one statistic of one element, scales included.
        master_bytes: Beside the weight.
        reads_of_grads: Passes over the gradients.
        tolerance: Relative L2 error of three steps' movement against float64; None where weights
            are rounded to half precision, whose error is counted in units in the last place.
        devices: Where it runs.
    """

    key: str
    name: str
    build: Build
    dtype: torch.dtype = torch.float32
    stats_bytes: float = 4.0
    master_bytes: int = 0
    reads_of_grads: int = 1
    tolerance: float | None = 1e-4
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("clipfast")

    @property
    def bytes_per_element(self) -> float:
        """Moved in one step; see the top of the file."""
        weight = self.dtype.itemsize
        grads = self.reads_of_grads * weight
        return 2 * weight + grads + 2 * 2 * self.stats_bytes + 2 * self.master_bytes


def _ours(key: str, name: str, **options) -> Contender:
    fields = ("dtype", "stats_bytes", "master_bytes", "reads_of_grads", "tolerance")
    given = {field: options.pop(field) for field in fields if field in options}
    options = {"skip_nonfinite": False, **options}
    return Contender(
        key, f"clipfast, {name}", lambda p: FusedAdamW(p, **_COMMON, **options), **given
    )


def _deepspeed_cpu(params: list[Tensor]) -> torch.optim.Optimizer:
    # Its first use compiles it, with the ninja that lies beside the interpreter.
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ["PATH"]])
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(params, **_COMMON, adamw_mode=True)


def _deepspeed_gpu(params: list[Tensor]) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(params, **_COMMON, adam_w_mode=True)


def _apex(params: list[Tensor]) -> torch.optim.Optimizer:
    from apex.optimizers import FusedAdam

    return FusedAdam(params, **_COMMON, adam_w_mode=True)


def _bitsandbytes(params: list[Tensor]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(params, **_COMMON)


def _torchao(params: list[Tensor]) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(params, **_COMMON)


# fp16 codes and one byte per block; 8-bit codes and one float32 per block.
_FP16, _EIGHT = 2 + 1 / BLOCK, 1 + 4 / BLOCK
_BF16_WEIGHTS = {"dtype": torch.bfloat16, "stats_bytes": _FP16}
CONTENDERS = {
    contender.key: contender
    for contender in (
        _ours("fp16", "fp32 weights, fp16 statistics", stats_bytes=_FP16, tolerance=2e-3),
        _ours(
            "fp16-check",
            "the same, non-finite steps skipped",
            stats_bytes=_FP16,
            tolerance=2e-3,
            reads_of_grads=2,
            skip_nonfinite=True,
        ),
        _ours(
            "bf16",
            "fp32 weights, bf16 statistics",
            stats_bytes=2,
            tolerance=2e-2,
            stats_dtype=torch.bfloat16,
        ),
        _ours("fp32", "fp32 weights, fp32 statistics", stats_dtype=torch.float32),
        _ours(
            "remainder",
            "bf16 weights and remainder, fp16 statistics",
            weights="remainder",
            master_bytes=2,
            tolerance=2e-3,
            **_BF16_WEIGHTS,
        ),
        _ours(
            "stochastic",
            "stochastic bf16 weights, fp16 statistics",
            weights="stochastic",
            tolerance=None,
            **_BF16_WEIGHTS,
        ),
        Contender(
            "torch-fused",
            "torch AdamW fused",
            lambda p: torch.optim.AdamW(p, **_COMMON, fused=True),
        ),
        Contender(
            "torch-foreach",
            "torch AdamW foreach",
            lambda p: torch.optim.AdamW(p, **_COMMON, foreach=True),
        ),
        # As many bytes as ours in stochastic bf16; its weights and statistics round to nearest.
        Contender(
            "torch-fused-bf16",
            "torch AdamW fused, all bf16",
            lambda p: torch.optim.AdamW(p, **_COMMON, fused=True),
            dtype=torch.bfloat16,
            stats_bytes=2,
            tolerance=None,
        ),
        Contender("deepspeed-cpu", "DeepSpeedCPUAdam", _deepspeed_cpu, devices=("cpu",)),
        Contender("deepspeed", "DeepSpeed FusedAdam", _deepspeed_gpu, devices=("cuda",)),
        Contender("apex", "apex FusedAdam", _apex, devices=("cuda",)),
        Contender(
            "bitsandbytes",
            "bitsandbytes AdamW8bit",
            _bitsandbytes,
            stats_bytes=_EIGHT,
            tolerance=0.15,
            devices=("cuda",),
        ),
        Contender(
            "torchao",
            "torchao AdamW8bit",
            _torchao,
            stats_bytes=_EIGHT,
            tolerance=0.15,
            devices=("cuda",),
        ),
    )
}
# Contender to the distribution whose version is told.
_DISTRIBUTIONS = {"torch": "torch", "deepspeed": "deepspeed", "apex": "apex"}
_DISTRIBUTIONS |= {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}


def version(contender: Contender) -> str | None:
    """The installed version of a peer's package; None for ours."""
    distribution = _DISTRIBUTIONS.get(contender.key.partition("-")[0])
    if contender.is_ours or distribution is None:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def make(contender: Contender, params: list[Tensor]) -> torch.optim.Optimizer:
    """Its optimizer.

    Raises:
        NotMeasured: It does not import, build or run here.
    """
    try:
        return contender.build(params)
    except Exception as error:  # whatever a peer's import or compiler raises is its reason
        if contender.is_ours:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NotMeasured(f"{type(error).__name__}: {lines[0]}") from error


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor that the optimizer keeps, step counts included."""
    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            total += _bytes_of(value)
    return total


def _bytes_of(value: object) -> int:
    if not isinstance(value, Tensor):
        return 0
    # torchao keeps codes and scales in a tensor of tensors.
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return sum(_bytes_of(getattr(value, name)) for name in names)
    return value.nbytes

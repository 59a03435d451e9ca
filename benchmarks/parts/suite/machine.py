"""The rates that bound every figure of a machine: products by type, and a copy."""

from __future__ import annotations

import torch

from benchmarks.parts.common import harness
from benchmarks.parts.common.products import Multiply, multipliers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}  # bytes, more than any cache holds
RUNS = {"cpu": 5, "cuda": 20}


def measure_products(name: str, device: torch.device) -> list[harness.Row]:
    """Time a square product by every library that multiplies this type here.

    Args:
        name: ``fp32``, ``tf32`` (on a GPU), ``bf16`` or ``fp16``.
        device: Where.

    Returns:
        One row per library, with ``flop`` and ``flop_per_s``.
    """
    dtype = DTYPES["fp32" if name == "tf32" else name]
    size = SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    truth = a[:8].double() @ b.double()
    found = multipliers(dtype, device)
    # TF32 keeps 10 bits of a factor, as fp16 does.
    limit = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2, "fp16": 2e-3}[name]

    def is_right(multiply: Multiply) -> bool:
        got = multiply(a, b, out)[:8].double()
        return bool((got - truth).norm() <= limit * truth.norm())

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        rows = harness.measure_together(
            {library: lambda m=multiply: m(a, b, out) for library, multiply in found.items()},
            check=lambda: all(map(is_right, found.values())),
            device=device,
            warmup=2,
            runs=RUNS[device.type],
            memory=False,
            ratios_to=[],
            what=f"product of {size} x {size} x {size}",
            dtype=name,
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    flop = 2 * size**3
    for row in rows:
        row.update(flop=flop, flop_per_s=1e3 * flop / row["median_ms"])
    return rows


def measure_copy(device: torch.device) -> list[harness.Row]:
    """Time a copy of more bytes than any cache holds; read and written bytes count."""
    half = COPIED[device.type] // 2
    source = torch.randn(half // 4, device=device)
    target = torch.empty_like(source)
    rows = harness.measure_together(
        {"torch copy_": lambda: target.copy_(source)},
        check=lambda: torch.equal(target.copy_(source), source),
        device=device,
        runs=RUNS[device.type],
        memory=False,
        what=f"copy of {half >> 20} MiB",
        bytes_moved=2 * half,
    )
    for row in rows:
        row["bytes_per_s"] = 1e3 * row["bytes_moved"] / row["median_ms"]
    return rows


def names_on(device: torch.device) -> list[str]:
    """The types whose products are timed on a device."""
    if device.type == "cuda":
        return ["bf16", "fp16", "tf32", "fp32"]
    return ["fp32", "bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["fp32"]

"""What was measured on an H200 and has no row here: from ``benchmarks/NOTES.md`` and the pages.

A prediction is its floor times what the same kernel needed of its floor on the H200. That comes
from rows where there are any. Here stands the rest, with its source.
"""

from __future__ import annotations

from dataclasses import dataclass

CARD = "H200"
# When the notes were taken: rows that are newer are of the kernels that the notes are of, or newer.
NOTED = "2026-11-27T12:00"


@dataclass(frozen=True)
class Known:
    """A time on the H200.

    Attributes:
        subject, case, implementation, dtype: Of the row that it would have been.
        ms: Milliseconds.
        source: Where it is noted.
    """

    subject: str
    case: str
    implementation: str
    dtype: str
    ms: float
    source: str


_LOG = "NOTES, 2026-11-27"
_PAGE = "page of the optimizer"
_L14 = "list ViT-L/14"
KNOWN = (
    # The walks over tokens took 5.6 of 6.99 ms; with the wider tiles 1.4, measured apart.
    Known("attention_pool", "pool RN50x64, batch 256", "clipfast", "bf16", 2.8, f"{_LOG}, parts"),
    Known("attention_pool", "pool RN50, batch 256", "clipfast", "bf16", 0.54, f"{_LOG}, old tiles"),
    # 87.6 with torch's average pooling: 13.5 and 4.6 of them, now by copies 5.8 and 3.4 times as
    # fast.
    Known(
        "step_throughput",
        "model RN50, batch 256, captions web",
        "clipfast",
        "bf16",
        87.6 - 18.1 + 13.5 / 5.8 + 4.6 / 3.4,
        f"{_LOG}, parts",
    ),
    Known("adamw", _L14, "clipfast, fp32 weights, fp16 statistics", "fp32", 2.8, _PAGE),
    Known("adamw", _L14, "clipfast, fp32 weights, bf16 statistics", "fp32", 2.2, _PAGE),
    Known("adamw", _L14, "clipfast, fp32 weights, fp32 statistics", "fp32", 3.2, _PAGE),
    Known(
        "adamw", _L14, "clipfast, bf16 weights and remainder, fp16 statistics", "bf16", 2.5, _PAGE
    ),
    Known("adamw", _L14, "clipfast, stochastic bf16 weights, fp16 statistics", "bf16", 2.2, _PAGE),
    Known("adamw", _L14, "torch AdamW fused", "fp32", 3.4, _PAGE),
    Known("adamw", _L14, "torch AdamW fused, all bf16", "bf16", 2.2, _PAGE),
)

"""Numbers of QuickGELU that Triton and csrc/quick_gelu/constants.h must agree on."""

from __future__ import annotations

import triton.language as tl

# Of the sigmoid's argument: x sigmoid(1.702 x) lies within 0.021 of GELU.
SLOPE = tl.constexpr(1.702)

"""Numbers of the row operators that Triton and csrc/common/constants.h must agree on."""

from __future__ import annotations

import triton.language as tl

# A sum of squares below this has lost squares that rounded to zero.
SMALLEST_SQUARES = tl.constexpr(2.0**-100)
SMALLEST_SQUARES_DOUBLE = tl.constexpr(2.0**-900)

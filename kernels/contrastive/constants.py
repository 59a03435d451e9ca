"""Numbers of the contrastive loss that Triton and csrc/contrastive/constants.h must agree on."""

from __future__ import annotations

import triton.language as tl

# Logits are held in units of ln 2: a power of two costs less than exp.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Natural units that the shift leaves between the largest sum and fp32's overflow at 88.7.
SHIFT_MARGIN = tl.constexpr(87.0)
# A sum below this may have lost terms to underflow. True maxima then take the shift's place.
SMALLEST_SUM = tl.constexpr(2.0**-100)
# A kept logit of 16 bits counts steps of bound / 32767, the largest int16.
KEPT_STEPS = tl.constexpr(32767.0)
# fp16 weights are stored times 2^14: |P| <= 2 stays in range, and P down to 2^-38 stays nonzero.
HALF_WEIGHT_SCALE = 2.0**14

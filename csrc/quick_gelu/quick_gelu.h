// QuickGELU, forward and backward.
//
//   forward:   y = x s(x), s(x) = 1 / (1 + exp(-1.702 x))
//   backward:  grad_x = grad_y s (1 + 1.702 x (1 - s))
//
// Forward reads x and writes y; the eager form makes two temporaries and keeps s beside x for its
// backward pass, which makes four more. Arithmetic is float32 (float64 for float64).
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/scalar_type.h"
#include "quick_gelu/constants.h"

namespace clipfast {

struct QuickGeluArgs {
  const void* grad_y;  // [n] dtype; nullptr: forward
  const void* x;       // [n] dtype
  void* out;           // [n] dtype: y, or grad_x
  DType dtype;
};

// Elements [begin, end).
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(quick_gelu_elements, QuickGeluArgs)

}  // namespace clipfast

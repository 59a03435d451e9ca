// Fused L2 normalisation of the rows of a matrix, forward and backward.
//
//   forward:   inv_norm = |x| > eps ? 1 / |x| : 0        y = x * inv_norm
//   backward:  u = x * inv_norm        grad_x = (grad_y - u <u, grad_y>) * inv_norm
//
// Each row is read from memory once and written once, in either direction. Sums are held in
// float32 (float64 for float64 rows). The backward form starts from x, not from a rounded y, so
// half-precision outputs cost the gradient nothing.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/rows.h"

namespace clipfast {

// B rows of D elements. float64 goes with float64 only; the other three types mix freely.
struct L2NormalizeArgs {
  Rows x;          // [B, D]
  MutableRows y;   // [B, D] contiguous
  void* inv_norm;  // [B] float32, or float64 when x is float64
  int64_t rows;    // B
  int64_t dim;     // D
  double eps;      // rows with |x| <= max(eps, smallest normal number) count as zero
};

struct L2NormalizeBackwardArgs {
  Rows grad_y;           // [B, D] of y's type
  Rows x;                // [B, D]
  const void* inv_norm;  // [B] float32, or float64 when x is float64
  MutableRows grad_x;    // [B, D] of x's type, contiguous
  int64_t rows;          // B
  int64_t dim;           // D
};

// CPU: rows [begin, end) of the matrix, on the calling thread.
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(l2_normalize_rows, L2NormalizeArgs)
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(l2_normalize_backward_rows, L2NormalizeBackwardArgs)

// CUDA: the whole matrix, on `stream` (a cudaStream_t) of the current device. Returns nullptr, or
// the launch's error in words.
const char* launch_l2_normalize(const L2NormalizeArgs& args, void* stream);
const char* launch_l2_normalize_backward(const L2NormalizeBackwardArgs& args, void* stream);

}  // namespace clipfast

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
#include "common/scalar_type.h"

namespace clipfast {

// B rows of D elements. Elements of a row are adjacent; rows lie `*_stride` elements apart.
// float64 goes with float64 only; the other three types mix freely.
struct L2NormalizeArgs {
  const void* x;   // [B, D] x_dtype, rows x_stride apart
  void* y;         // [B, D] y_dtype, contiguous
  void* inv_norm;  // [B] float32, or float64 when x is float64
  DType x_dtype;
  DType y_dtype;
  int64_t x_stride;  // elements
  int64_t rows;      // B
  int64_t dim;       // D
  double eps;        // rows with |x| <= max(eps, smallest normal number) count as zero
};

struct L2NormalizeBackwardArgs {
  const void* grad_y;    // [B, D] y_dtype, rows grad_y_stride apart
  const void* x;         // [B, D] x_dtype, rows x_stride apart
  const void* inv_norm;  // [B] float32, or float64 when x is float64
  void* grad_x;          // [B, D] x_dtype, contiguous
  DType x_dtype;
  DType y_dtype;
  int64_t grad_y_stride;  // elements
  int64_t x_stride;       // elements
  int64_t rows;           // B
  int64_t dim;            // D
};

// CPU: rows [begin, end) of the matrix, on the calling thread.
CLIPFAST_DECLARE_CPU_KERNEL(l2_normalize_rows, const L2NormalizeArgs& args, int64_t begin,
                            int64_t end)
CLIPFAST_DECLARE_CPU_KERNEL(l2_normalize_backward_rows, const L2NormalizeBackwardArgs& args,
                            int64_t begin, int64_t end)

// CUDA: the whole matrix, on `stream` (a cudaStream_t) of the current device. Returns nullptr, or
// the launch's error in words.
const char* launch_l2_normalize(const L2NormalizeArgs& args, void* stream);
const char* launch_l2_normalize_backward(const L2NormalizeBackwardArgs& args, void* stream);

}  // namespace clipfast

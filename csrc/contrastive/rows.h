// The operators of the contrastive loss that work on the rows of the features: prepare, diagonal,
// finish. clipfast/ops/contrastive has the equations and the legend.
//
// acc is float32, or float64 where the features are; the CPU has no float64 form. Vectors of acc
// are contiguous.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/rows.h"

namespace clipfast {

// inverse_norm = 1 / |x|;  work = x 2^-e of a norm in [1, 2);  factor = 1 / |work|.
// Without `normalize`: work = x, and both are 1.
struct PrepareArgs {
  Rows x;              // [B, D]
  MutableRows work;    // [B, D] contiguous, or its data null: no copy is wanted
  void* inverse_norm;  // [B] acc
  void* factor;        // [B] acc
  void* norm;          // [B] acc: of the feature that the loss compares
  int64_t rows;        // B
  int64_t dim;         // D
  bool normalize;
};

// diagonal = <x x_inverse_norm, y y_inverse_norm>
struct DiagonalArgs {
  Rows x;                      // [B, D]
  Rows y;                      // [B, D] of x's type
  const void* x_inverse_norm;  // [B] acc
  const void* y_inverse_norm;  // [B] acc
  void* diagonal;              // [B] acc
  int64_t rows;                // B
  int64_t dim;                 // D
};

// u = x inverse_norm;  dU = grad / factor + diagonal other other_inverse_norm;  dot = <u, dU>
// grad_x = coefficient (dU - u dot) inverse_norm, or coefficient dU without `normalize`.
struct FinishArgs {
  Rows grad;                       // [B, D] acc
  Rows x;                          // [B, D]
  Rows other;                      // [B, D] of x's type
  const void* inverse_norm;        // [B] acc
  const void* other_inverse_norm;  // [B] acc
  const void* factor;              // [B] acc
  const void* diagonal;            // [B] acc
  const void* coefficient;         // [1] acc
  MutableRows grad_x;              // [B, D] of x's type, contiguous
  void* dot;                       // [B] acc
  int64_t rows;                    // B
  int64_t dim;                     // D
  bool normalize;
};

// CPU: rows [begin, end), on the calling thread.
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(contrastive_prepare_rows, PrepareArgs)
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(contrastive_diagonal_rows, DiagonalArgs)
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(contrastive_finish_rows, FinishArgs)

// CUDA: all rows, on `stream` (a cudaStream_t) of the current device. Returns nullptr, or the
// launch's error in words.
const char* launch_prepare(const PrepareArgs& args, void* stream);
const char* launch_diagonal(const DiagonalArgs& args, void* stream);
const char* launch_finish(const FinishArgs& args, void* stream);

}  // namespace clipfast

// Operands of the CPU's matrix products, packed as oneDNN's block product wants them.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"

namespace clipfast {

// What the packing kernels read and write: matrices with adjacent elements in a row.
struct Matrix {
  const void* source;  // [rows, columns]
  int64_t source_stride;
  int64_t rows;
  int64_t columns;
  void* target;
  int64_t target_stride;
};

// target [columns, rows] = source^T, 32-bit elements.
CLIPFAST_DECLARE_CPU_KERNEL(transpose, const Matrix& args)
// target [columns, rows] = source^T, float to bfloat16.
CLIPFAST_DECLARE_CPU_KERNEL(transpose_to_bf16, const Matrix& args)
// target [rows, columns] = source, float to bfloat16.
CLIPFAST_DECLARE_CPU_KERNEL(round_to_bf16, const Matrix& args)
// target [(rows + 1) / 2, columns, 2] of bfloat16: rows 2k and 2k + 1 interleaved, as the products
// of pairs want their right operand; a missing last row counts as zeros.
CLIPFAST_DECLARE_CPU_KERNEL(interleave_rows, const Matrix& args)

}  // namespace clipfast

// cuBLAS's matrix products of row-major matrices.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace clipfast {

// A matrix with rows `stride` elements apart, to be used as it lies or transposed.
struct Operand {
  const void* data;
  int64_t stride;
  bool is_transposed;
};

// The rows of t from `first` on.
Operand rows_from(const at::Tensor& t, int64_t first, bool is_transposed = false);

// c [m, n] = alpha a b + beta c, with a [m, k] and b [k, n] of `type`, and c of float32, or float64
// where `type` is. No sum is rounded below c's type.
void gemm(at::ScalarType type, const Operand& a, const Operand& b, void* c, int64_t c_stride,
          int64_t m, int64_t n, int64_t k, double alpha, double beta);

}  // namespace clipfast

// Small bridges between torch's types and clipfast's own, for the files that check and allocate.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

#include "common/rows.h"

namespace clipfast {

inline DType to_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      TORCH_CHECK(false, "expected float32, float64, float16 or bfloat16, got ", type);
  }
}

// What sums and products are held in: float64 for float64, float32 for all else.
inline at::ScalarType accumulate_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

// A slice such as tokens[:, 0] has adjacent elements and far rows: taken as it is. What else comes
// (an expanded gradient, a transposed matrix) is copied first.
inline at::Tensor with_adjacent_elements(const at::Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : t.contiguous();
}

// A single row's stride can be anything, also what no kernel accepts.
inline int64_t row_stride(const at::Tensor& t) { return t.size(0) > 1 ? t.stride(0) : t.size(1); }

// A matrix with adjacent elements, for a kernel to read.
inline Rows to_rows(const at::Tensor& t) {
  return {t.const_data_ptr(), to_dtype(t.scalar_type()), row_stride(t)};
}

inline MutableRows to_mutable_rows(const at::Tensor& t) {
  return {t.mutable_data_ptr(), to_dtype(t.scalar_type()), row_stride(t)};
}
}  // namespace clipfast

// Small bridges between torch's types and clipfast's own, for the files that check and allocate.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "scalar_type.h"

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

}  // namespace clipfast

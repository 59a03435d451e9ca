// The element types that clipfast's kernels accept, free of any torch or CUDA header so that CPU
// kernels, CUDA kernels and their callers can share one argument struct.
#pragma once

#include <cstdint>

namespace clipfast {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

}  // namespace clipfast

// Matrices as the row operators take them, on CPU and CUDA alike. Free of torch and CUDA headers.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/scalar_type.h"

namespace clipfast {

// A matrix that is read. Elements of a row are adjacent; rows lie `stride` elements apart.
struct Rows {
  const void* data;
  DType dtype;
  int64_t stride;

  template <typename T>
  CLIPFAST_HOST_DEVICE const T* row(int64_t i) const {
    return static_cast<const T*>(data) + i * stride;
  }
};

// A matrix that is written.
struct MutableRows {
  void* data;
  DType dtype;
  int64_t stride;

  template <typename T>
  CLIPFAST_HOST_DEVICE T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride;
  }
};

}  // namespace clipfast

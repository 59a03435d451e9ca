// The tensors of the contrastive operators on CUDA: checks, and pointers into them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <type_traits>

#include "common/torch_types.h"

namespace clipfast {

// [rows, D] with adjacent elements, and rows that do not overlap as an expanded gradient's do:
// cuBLAS refuses those.
inline at::Tensor as_matrix(const at::Tensor& t, const char* name) {
  TORCH_CHECK(t.dim() == 2, "contrastive: expected ", name, " of shape [rows, D], got ", t.sizes());
  TORCH_CHECK(t.size(1) < int64_t{1} << 30, "contrastive: expected ", name,
              " of fewer than 2^30 columns, got ", t.sizes());
  to_dtype(t.scalar_type());
  const at::Tensor rows = with_adjacent_elements(t);
  return row_stride(rows) >= rows.size(1) ? rows : rows.contiguous();
}

inline at::Tensor as_vector(const at::Tensor& t, int64_t size, const at::Tensor& like,
                            const char* name) {
  const auto acc = accumulate_type(like.scalar_type());
  TORCH_CHECK(t.numel() == size && t.scalar_type() == acc && t.device() == like.device(),
              "contrastive: expected ", name, " of ", size, " elements ", acc, " on ",
              like.device(), ", got ", t.sizes(), " ", t.scalar_type(), " on ", t.device());
  return t.contiguous();
}

// t: of x's shape.
inline void check_same(const at::Tensor& t, const at::Tensor& x, at::ScalarType type,
                       const char* name) {
  TORCH_CHECK(t.sizes() == x.sizes() && t.scalar_type() == type && t.device() == x.device(),
              "contrastive: expected ", name, " of shape ", x.sizes(), " and type ", type, " on ",
              x.device(), ", got ", t.sizes(), " ", t.scalar_type(), " on ", t.device());
}

template <typename Pointer>
Pointer advance(Pointer data, int64_t elements, int64_t element_bytes) {
  using Byte =
      std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return static_cast<Byte*>(data) + elements * element_bytes;
}

inline const void* at_element(const at::Tensor& t, int64_t i) {
  return advance(t.const_data_ptr(), i, t.element_size());
}
inline void* at_element_mut(const at::Tensor& t, int64_t i) {
  return advance(t.mutable_data_ptr(), i, t.element_size());
}

}  // namespace clipfast

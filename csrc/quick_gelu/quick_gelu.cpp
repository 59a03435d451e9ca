// Checks, allocation and registration of quick_gelu and its backward.
#include "quick_gelu.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "common/torch_types.h"

namespace clipfast {
namespace {

using at::Tensor;

// Elements a thread takes at the least; a multiple of every vector length, so that no thread but
// the last has a tail and the bits do not depend on the number of threads.
constexpr int64_t kGrain = 16384;

void run(const QuickGeluArgs& args, int64_t count) {
  auto* kernel = CLIPFAST_CPU_KERNEL(quick_gelu_elements);
  at::parallel_for(0, (count + kGrain - 1) / kGrain, 1, [&](int64_t begin, int64_t end) {
    kernel(args, begin * kGrain, std::min(end * kGrain, count));
  });
}

Tensor quick_gelu(const Tensor& x_in) {
  const auto dtype = to_dtype(x_in.scalar_type());
  const Tensor x = x_in.contiguous();
  Tensor y = at::empty_like(x);
  run({nullptr, x.const_data_ptr(), y.mutable_data_ptr(), dtype}, x.numel());
  return y;
}

Tensor quick_gelu_backward(const Tensor& grad_y_in, const Tensor& x_in) {
  TORCH_CHECK(grad_y_in.sizes() == x_in.sizes() && grad_y_in.scalar_type() == x_in.scalar_type() &&
                  grad_y_in.device() == x_in.device(),
              "quick_gelu_backward: expected grad_y and x of one shape, type and device, got ",
              grad_y_in.sizes(), " ", grad_y_in.scalar_type(), " ", grad_y_in.device(), " and ",
              x_in.sizes(), " ", x_in.scalar_type(), " ", x_in.device());
  const auto dtype = to_dtype(x_in.scalar_type());
  const Tensor grad_y = grad_y_in.contiguous(), x = x_in.contiguous();
  Tensor grad_x = at::empty_like(x);
  run({grad_y.const_data_ptr(), x.const_data_ptr(), grad_x.mutable_data_ptr(), dtype}, x.numel());
  return grad_x;
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("quick_gelu", &quick_gelu);
  m.impl("quick_gelu_backward", &quick_gelu_backward);
}

}  // namespace clipfast

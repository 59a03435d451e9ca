// Checks, allocation and registration of l2_normalize and its backward.
#include "normalize.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/cpu_threads.h"
#include "common/torch_types.h"

#ifdef CLIPFAST_CUDA
#include "common/torch_cuda.h"
#endif

namespace clipfast {
namespace {

using at::Tensor;

// The CUDA kernels index inside a row with 32 bits.
constexpr int64_t kMaxDim = int64_t{1} << 30;

void check_types(at::ScalarType x, at::ScalarType y) {
  // Throws where a type is none of the four.
  to_dtype(x);
  to_dtype(y);
  TORCH_CHECK((x == at::kDouble) == (y == at::kDouble),
              "l2_normalize: float64 goes with float64 only, got x ", x, " and y ", y);
}

struct Forward {
  Tensor x, y, inv_norm;
  L2NormalizeArgs args;
};

Forward prepare_forward(const Tensor& x_in, double eps, std::optional<at::ScalarType> out_dtype) {
  TORCH_CHECK(x_in.dim() == 2, "l2_normalize: expected x of shape [B, D], got ", x_in.sizes());
  TORCH_CHECK(x_in.size(1) <= kMaxDim, "l2_normalize: expected rows of at most ", kMaxDim,
              " elements, got ", x_in.size(1));
  TORCH_CHECK(eps >= 0, "l2_normalize: expected eps >= 0, got ", eps);
  const auto y_type = out_dtype.value_or(x_in.scalar_type());
  check_types(x_in.scalar_type(), y_type);
  Forward f;
  f.x = with_adjacent_elements(x_in);
  f.y = at::empty(x_in.sizes(), x_in.options().dtype(y_type));
  f.inv_norm = at::empty({x_in.size(0)}, x_in.options().dtype(accumulate_type(x_in.scalar_type())));
  f.args = {to_rows(f.x), to_mutable_rows(f.y), f.inv_norm.mutable_data_ptr(),
            x_in.size(0), x_in.size(1),         eps};
  return f;
}

struct Backward {
  Tensor grad_y, x, inv_norm, grad_x;
  L2NormalizeBackwardArgs args;
};

Backward prepare_backward(const Tensor& grad_y, const Tensor& x, const Tensor& inv_norm) {
  TORCH_CHECK(x.dim() == 2 && grad_y.sizes() == x.sizes(),
              "l2_normalize_backward: expected grad_y and x of one shape [B, D], got ",
              grad_y.sizes(), " and ", x.sizes());
  check_types(x.scalar_type(), grad_y.scalar_type());
  TORCH_CHECK(inv_norm.dim() == 1 && inv_norm.size(0) == x.size(0) &&
                  inv_norm.scalar_type() == accumulate_type(x.scalar_type()),
              "l2_normalize_backward: expected inv_norm of shape [", x.size(0), "] and type ",
              accumulate_type(x.scalar_type()), ", got ", inv_norm.sizes(), " ",
              inv_norm.scalar_type());
  TORCH_CHECK(grad_y.device() == x.device() && inv_norm.device() == x.device(),
              "l2_normalize_backward: expected one device, got ", grad_y.device(), ", ", x.device(),
              " and ", inv_norm.device());
  Backward b;
  b.grad_y = with_adjacent_elements(grad_y);
  b.x = with_adjacent_elements(x);
  b.inv_norm = inv_norm.contiguous();
  b.grad_x = at::empty(x.sizes(), x.options());
  b.args = {to_rows(b.grad_y),         to_rows(b.x), b.inv_norm.const_data_ptr(),
            to_mutable_rows(b.grad_x), x.size(0),    x.size(1)};
  return b;
}

std::tuple<Tensor, Tensor> l2_normalize_cpu(const Tensor& x, double eps,
                                            std::optional<at::ScalarType> out_dtype) {
  const Forward f = prepare_forward(x, eps, out_dtype);
  run_range(CLIPFAST_CPU_KERNEL(l2_normalize_rows), f.args, f.args.rows, row_grain(f.args.dim));
  return {f.y, f.inv_norm};
}

Tensor l2_normalize_backward_cpu(const Tensor& grad_y, const Tensor& x, const Tensor& inv_norm) {
  const Backward b = prepare_backward(grad_y, x, inv_norm);
  run_range(CLIPFAST_CPU_KERNEL(l2_normalize_backward_rows), b.args, b.args.rows,
            row_grain(b.args.dim));
  return b.grad_x;
}

#ifdef CLIPFAST_CUDA

std::tuple<Tensor, Tensor> l2_normalize_cuda(const Tensor& x, double eps,
                                             std::optional<at::ScalarType> out_dtype) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Forward f = prepare_forward(x, eps, out_dtype);
  check_launch(launch_l2_normalize(f.args, current_stream()), "l2_normalize");
  return {f.y, f.inv_norm};
}

Tensor l2_normalize_backward_cuda(const Tensor& grad_y, const Tensor& x, const Tensor& inv_norm) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Backward b = prepare_backward(grad_y, x, inv_norm);
  check_launch(launch_l2_normalize_backward(b.args, current_stream()), "l2_normalize_backward");
  return b.grad_x;
}

#endif  // CLIPFAST_CUDA

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("l2_normalize", &l2_normalize_cpu);
  m.impl("l2_normalize_backward", &l2_normalize_backward_cpu);
}

#ifdef CLIPFAST_CUDA
TORCH_LIBRARY_IMPL(clipfast, CUDA, m) {
  m.impl("l2_normalize", &l2_normalize_cuda);
  m.impl("l2_normalize_backward", &l2_normalize_backward_cuda);
}
#endif

}  // namespace clipfast

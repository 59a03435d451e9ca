// Checks, allocation and registration of l2_normalize and its backward.
#include "normalize.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/torch_types.h"

#ifdef CLIPFAST_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
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
  f.args = {f.x.const_data_ptr(),
            f.y.mutable_data_ptr(),
            f.inv_norm.mutable_data_ptr(),
            to_dtype(x_in.scalar_type()),
            to_dtype(y_type),
            f.x.stride(0),
            x_in.size(0),
            x_in.size(1),
            eps};
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
  b.args = {b.grad_y.const_data_ptr(),
            b.x.const_data_ptr(),
            b.inv_norm.const_data_ptr(),
            b.grad_x.mutable_data_ptr(),
            to_dtype(x.scalar_type()),
            to_dtype(grad_y.scalar_type()),
            b.grad_y.stride(0),
            b.x.stride(0),
            x.size(0),
            x.size(1)};
  return b;
}

std::tuple<Tensor, Tensor> l2_normalize_cpu(const Tensor& x, double eps,
                                            std::optional<at::ScalarType> out_dtype) {
  const Forward f = prepare_forward(x, eps, out_dtype);
  auto* kernel = CLIPFAST_CPU_KERNEL(l2_normalize_rows);
  at::parallel_for(0, f.args.rows, row_grain(f.args.dim),
                   [&](int64_t begin, int64_t end) { kernel(f.args, begin, end); });
  return {f.y, f.inv_norm};
}

Tensor l2_normalize_backward_cpu(const Tensor& grad_y, const Tensor& x, const Tensor& inv_norm) {
  const Backward b = prepare_backward(grad_y, x, inv_norm);
  auto* kernel = CLIPFAST_CPU_KERNEL(l2_normalize_backward_rows);
  at::parallel_for(0, b.args.rows, row_grain(b.args.dim),
                   [&](int64_t begin, int64_t end) { kernel(b.args, begin, end); });
  return b.grad_x;
}

#ifdef CLIPFAST_CUDA

std::tuple<Tensor, Tensor> l2_normalize_cuda(const Tensor& x, double eps,
                                             std::optional<at::ScalarType> out_dtype) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Forward f = prepare_forward(x, eps, out_dtype);
  const char* error = launch_l2_normalize(f.args, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == nullptr, "l2_normalize: the CUDA launch failed: ", error);
  return {f.y, f.inv_norm};
}

Tensor l2_normalize_backward_cuda(const Tensor& grad_y, const Tensor& x, const Tensor& inv_norm) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Backward b = prepare_backward(grad_y, x, inv_norm);
  const char* error =
      launch_l2_normalize_backward(b.args, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == nullptr, "l2_normalize_backward: the CUDA launch failed: ", error);
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

// The row operators of the contrastive loss on CUDA: checks, allocation, registration.
#ifdef CLIPFAST_CUDA

#include "contrastive/rows.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "arguments.h"
#include "common/torch_cuda.h"

namespace clipfast {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> prepare(const Tensor& x_in, bool normalize,
                                                   std::optional<at::ScalarType> work_dtype) {
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_matrix(x_in, "x");
  const auto type = x.scalar_type();
  const auto work_type = work_dtype.value_or(type);
  to_dtype(work_type);
  TORCH_CHECK((type == at::kDouble) == (work_type == at::kDouble),
              "contrastive_prepare: float64 goes with float64 only, got x ", type, " and work ",
              work_type);
  const int64_t rows = x.size(0);
  const auto options = x.options().dtype(accumulate_type(type));
  const auto work_options = x.options().dtype(work_type);
  const Tensor work =
      work_dtype ? at::empty(x.sizes(), work_options) : at::empty({0}, work_options);
  const Tensor inverse_norm = at::empty({rows}, options), factor = at::empty({rows}, options);
  const Tensor norm = at::empty({rows}, options);
  const PrepareArgs args = {
      to_rows(x),
      work_dtype ? to_mutable_rows(work) : MutableRows{nullptr, to_dtype(work_type), 0},
      inverse_norm.mutable_data_ptr(),
      factor.mutable_data_ptr(),
      norm.mutable_data_ptr(),
      rows,
      x.size(1),
      normalize};
  check_launch(launch_prepare(args, current_stream()), "contrastive_prepare");
  return {work, inverse_norm, factor, norm};
}

Tensor diagonal(const Tensor& x_in, const Tensor& y_in, const Tensor& x_inverse_norm_in,
                const Tensor& y_inverse_norm_in) {
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_matrix(x_in, "x"), y = as_matrix(y_in, "y");
  check_same(y, x, x.scalar_type(), "y");
  const int64_t rows = x.size(0);
  const Tensor x_inverse_norm = as_vector(x_inverse_norm_in, rows, x, "x_inverse_norm");
  const Tensor y_inverse_norm = as_vector(y_inverse_norm_in, rows, x, "y_inverse_norm");
  const Tensor out = at::empty({rows}, x_inverse_norm.options());
  const DiagonalArgs args = {to_rows(x),
                             to_rows(y),
                             x_inverse_norm.const_data_ptr(),
                             y_inverse_norm.const_data_ptr(),
                             out.mutable_data_ptr(),
                             rows,
                             x.size(1)};
  check_launch(launch_diagonal(args, current_stream()), "contrastive_diagonal");
  return out;
}

std::tuple<Tensor, Tensor> finish(const Tensor& grad_in, const Tensor& x_in, const Tensor& other_in,
                                  const Tensor& inverse_norm_in,
                                  const Tensor& other_inverse_norm_in, const Tensor& factor_in,
                                  const Tensor& diagonal_in, const Tensor& coefficient_in,
                                  bool normalize) {
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_matrix(x_in, "x"), grad = as_matrix(grad_in, "grad");
  const Tensor other = as_matrix(other_in, "other");
  check_same(other, x, x.scalar_type(), "other");
  check_same(grad, x, accumulate_type(x.scalar_type()), "grad");
  const int64_t rows = x.size(0);
  const Tensor inverse_norm = as_vector(inverse_norm_in, rows, x, "inverse_norm");
  const Tensor other_inverse = as_vector(other_inverse_norm_in, rows, x, "other_inverse_norm");
  const Tensor factor = as_vector(factor_in, rows, x, "factor");
  const Tensor diagonal = as_vector(diagonal_in, rows, x, "diagonal");
  const Tensor coefficient = as_vector(coefficient_in, 1, x, "coefficient");
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  const Tensor dot = at::empty({rows}, inverse_norm.options());
  const FinishArgs args = {to_rows(grad),
                           to_rows(x),
                           to_rows(other),
                           inverse_norm.const_data_ptr(),
                           other_inverse.const_data_ptr(),
                           factor.const_data_ptr(),
                           diagonal.const_data_ptr(),
                           coefficient.const_data_ptr(),
                           to_mutable_rows(grad_x),
                           dot.mutable_data_ptr(),
                           rows,
                           x.size(1),
                           normalize};
  check_launch(launch_finish(args, current_stream()), "contrastive_finish");
  return {grad_x, dot};
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CUDA, m) {
  m.impl("contrastive_prepare", &prepare);
  m.impl("contrastive_diagonal", &diagonal);
  m.impl("contrastive_finish", &finish);
}

}  // namespace clipfast

#endif  // CLIPFAST_CUDA

// contrastive_statistics and contrastive_gradients on CUDA: softmax's vectors, registration.
#ifdef CLIPFAST_CUDA

#include "softmax.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "arguments.h"
#include "common/torch_cuda.h"
#include "strip_walk.h"

namespace clipfast {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> statistics(
    const Tensor& x, const Tensor& y, const Tensor& row_factor, const Tensor& column_factor,
    const Tensor& scale, const Tensor& bound, int64_t first_column, bool keep,
    int64_t workspace_bytes) {
  const c10::cuda::CUDAGuard guard(x.device());
  const ChunkedStrip s = make_strip(x, y, row_factor, column_factor, scale, bound, first_column);
  const auto options = s.acc_options();
  const Tensor row_max = at::empty({s.rows}, options), row_sum = at::empty({s.rows}, options);
  const Tensor column_max = at::empty({s.columns}, options);
  const Tensor column_sum = at::empty({s.columns}, options);
  const Tensor shift = at::empty({1}, options);
  const auto kept_options = options.dtype(kept_type(s));
  const Tensor kept =
      keep ? at::empty({s.rows, s.columns}, kept_options) : at::empty({0}, kept_options);
  const double log_columns = std::log(static_cast<double>(s.columns));

  const ChunkPlan plan = plan_sums(s, workspace_bytes);
  const Tensor flags = at::zeros({plan.chunks(s) + 1}, options.dtype(at::kInt));
  int32_t* flag = flags.mutable_data_ptr<int32_t>();
  walk_sums(
      s, plan, kept, [&](const Chunk& chunk, const ChunkSums& sums, int64_t row, int64_t column) {
        const SoftmaxSums args = {sums,
                                  at_element_mut(row_max, row),
                                  at_element_mut(row_sum, row),
                                  at_element_mut(column_max, column),
                                  at_element_mut(column_sum, column),
                                  flag++,
                                  log_columns,
                                  row == 0,
                                  column == 0};
        check_launch(launch_softmax_sums(chunk, args, current_stream()), "contrastive_statistics");
      });
  const SoftmaxShift last = {row_max.mutable_data_ptr(),
                             row_sum.mutable_data_ptr(),
                             column_max.mutable_data_ptr(),
                             column_sum.mutable_data_ptr(),
                             shift.mutable_data_ptr(),
                             s.bound.const_data_ptr(),
                             flag,
                             s.rows,
                             s.columns,
                             log_columns,
                             s.is_double};
  check_launch(launch_softmax_shift(last, current_stream()), "contrastive_statistics");
  return {row_max, row_sum, column_max, column_sum, shift, kept};
}

std::tuple<Tensor, Tensor> gradients(const Tensor& x, const Tensor& y, const Tensor& row_factor,
                                     const Tensor& column_factor, const Tensor& scale,
                                     const Tensor& bound, const Tensor& shift_in,
                                     const Tensor& row_lse_in, const Tensor& column_lse_in,
                                     const Tensor& kept_in, int64_t first_column, bool want_rows,
                                     bool want_columns, int64_t workspace_bytes) {
  const c10::cuda::CUDAGuard guard(x.device());
  const ChunkedStrip s = make_strip(x, y, row_factor, column_factor, scale, bound, first_column);
  const Tensor shift = as_vector(shift_in, 1, x, "shift");
  const Tensor row_lse = as_vector(row_lse_in, s.rows, x, "row_lse");
  const Tensor column_lse = as_vector(column_lse_in, s.columns, x, "column_lse");
  const bool is_kept = kept_in.numel() > 0;
  TORCH_CHECK(!is_kept || (kept_in.dim() == 2 && kept_in.size(0) == s.rows &&
                           kept_in.size(1) == s.columns && kept_in.scalar_type() == kept_type(s) &&
                           kept_in.device() == x.device()),
              "contrastive_gradients: expected kept of shape [", s.rows, ", ", s.columns,
              "] and type ", kept_type(s), ", got ", kept_in.sizes(), " ", kept_in.scalar_type());
  const Tensor kept = is_kept ? kept_in.contiguous() : kept_in;
  return walk_gradients(
      s, kept, want_rows, want_columns, workspace_bytes,
      [&](const Chunk& chunk, const MutableRows& weights, int64_t row, int64_t column) {
        const SoftmaxLse lse = {shift.const_data_ptr(), at_element(row_lse, row),
                                at_element(column_lse, column)};
        check_launch(launch_softmax_weights(chunk, lse, weights, current_stream()),
                     "contrastive_gradients");
      });
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CUDA, m) {
  m.impl("contrastive_statistics", &statistics);
  m.impl("contrastive_gradients", &gradients);
}

}  // namespace clipfast

#endif  // CLIPFAST_CUDA

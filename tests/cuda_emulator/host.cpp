// The host code of the emulated operators: those of the contrastive loss and of AdamW as they are,
// sigmoid.h's rules over the strip, and the launches of csrc/normalize as operators (normalize.cpp
// would bring its CPU operators along, which belong to another build). One file, since torch's
// headers take longer to compile than all the rest.
#include <ATen/ops/from_blob.h>

#include "registration.h"

#include "adamw/adamw.cpp"
#include "adamw/cuda/adamw_cuda.cpp"
#include "contrastive/cuda/gemm.cpp"
#include "contrastive/cuda/rows.cpp"
#include "contrastive/cuda/softmax.cpp"
#include "contrastive/cuda/strip.cpp"
#include "contrastive/cuda/strip_walk.cpp"
#include "normalize/normalize.h"
#include "sigmoid.h"

namespace clipfast {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> l2_normalize(const Tensor& x, double eps,
                                        std::optional<at::ScalarType> out_dtype) {
  const auto type = x.scalar_type(), y_type = out_dtype.value_or(type);
  const Tensor y = at::empty(x.sizes(), x.options().dtype(y_type));
  const Tensor inv_norm = at::empty({x.size(0)}, x.options().dtype(accumulate_type(type)));
  check_launch(launch_l2_normalize({to_rows(x), to_mutable_rows(y), inv_norm.mutable_data_ptr(),
                                    x.size(0), x.size(1), eps},
                                   nullptr),
               "l2_normalize");
  return {y, inv_norm};
}

Tensor l2_normalize_backward(const Tensor& grad_y, const Tensor& x, const Tensor& inv_norm) {
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  check_launch(launch_l2_normalize_backward({to_rows(grad_y), to_rows(x), inv_norm.const_data_ptr(),
                                             to_mutable_rows(grad_x), x.size(0), x.size(1)},
                                            nullptr),
               "l2_normalize_backward");
  return grad_x;
}

// (sum_j e_ij [B], sum_i e_ij [G])
std::tuple<Tensor, Tensor> sigmoid_sums(const Tensor& x, const Tensor& y, const Tensor& row_factor,
                                        const Tensor& column_factor, const Tensor& scale,
                                        const Tensor& bound, int64_t first_column,
                                        int64_t workspace_bytes) {
  const ChunkedStrip s = make_strip(x, y, row_factor, column_factor, scale, bound, first_column);
  const Tensor row_sum = at::zeros({s.rows}, s.acc_options());
  const Tensor column_sum = at::zeros({s.columns}, s.acc_options());
  walk_sums(s, plan_sums(s, workspace_bytes), at::empty({0}, s.acc_options()),
            [&](const Chunk& chunk, const ChunkSums& sums, int64_t row, int64_t column) {
              check_launch(launch_sigmoid_sums(chunk, sums, nullptr), "sigmoid_sums");
              const Tensor total =
                  at::from_blob(sums.total, {chunk.rows + chunk.columns}, s.acc_options());
              row_sum.narrow(0, row, chunk.rows).add_(total.narrow(0, 0, chunk.rows));
              column_sum.narrow(0, column, chunk.columns)
                  .add_(total.narrow(0, chunk.rows, chunk.columns));
            });
  return {row_sum, column_sum};
}

// (Q y, Q^T x)
std::tuple<Tensor, Tensor> sigmoid_gradients(const Tensor& x, const Tensor& y,
                                             const Tensor& row_factor, const Tensor& column_factor,
                                             const Tensor& scale, const Tensor& bound,
                                             int64_t first_column, int64_t workspace_bytes) {
  const ChunkedStrip s = make_strip(x, y, row_factor, column_factor, scale, bound, first_column);
  return walk_gradients(s, at::empty({0}, s.acc_options()), true, true, workspace_bytes,
                        [](const Chunk& chunk, const MutableRows& weights, int64_t, int64_t) {
                          check_launch(launch_sigmoid_weights(chunk, weights, nullptr),
                                       "sigmoid_gradients");
                        });
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CUDA, m) {
  m.impl("l2_normalize", &l2_normalize);
  m.impl("l2_normalize_backward", &l2_normalize_backward);
  m.impl("sigmoid_sums", &sigmoid_sums);
  m.impl("sigmoid_gradients", &sigmoid_gradients);
}

}  // namespace clipfast

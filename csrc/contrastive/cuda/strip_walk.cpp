// The walk over the strip on CUDA.
#ifdef CLIPFAST_CUDA

#include "strip_walk.h"

#include <ATen/ops/empty.h>

#include "arguments.h"
#include "gemm.h"

namespace clipfast {
namespace {

using at::Tensor;

// products = x y^T over the chunk.
void multiply(const ChunkedStrip& s, Chunk& chunk, const Tensor& products, int64_t row,
              int64_t column) {
  chunk.products = products.mutable_data_ptr();
  gemm(s.x.scalar_type(), rows_from(s.x, row), rows_from(s.y, column, true), chunk.products,
       chunk.products_stride, chunk.rows, chunk.columns, s.dim, 1.0, 0.0);
}

}  // namespace

at::ScalarType kept_type(const ChunkedStrip& s) {
  return is_half(s.x) ? at::kShort : s.row_factor.scalar_type();
}

ChunkPlan plan_sums(const ChunkedStrip& s, int64_t workspace_bytes) {
  // A product, and its share in the partial sums and in a rule's own partials.
  const double element_bytes = s.acc_bytes() * (1 + 2.0 / kTileRows + 2.0 / kTileColumns);
  return make_plan(s, element_bytes, workspace_bytes);
}

void walk_sums(const ChunkedStrip& s, const ChunkPlan& plan, const Tensor& kept,
               const AddUpChunk& add_up) {
  const auto options = s.acc_options();
  const Tensor products = at::empty({plan.rows, plan.stride()}, options);
  const Tensor row_partial = at::empty({2, tiles(plan.columns, kTileColumns), plan.rows}, options);
  const Tensor column_partial = at::empty({2, tiles(plan.rows, kTileRows), plan.columns}, options);
  const Tensor total = at::empty({plan.rows + plan.columns}, options);
  const ChunkSums sums = {row_partial.mutable_data_ptr(), column_partial.mutable_data_ptr(),
                          total.mutable_data_ptr()};
  for_each_chunk(s, plan, [&](int64_t row, int64_t column) {
    Chunk chunk = make_chunk(s, plan, kept, row, column);
    multiply(s, chunk, products, row, column);
    add_up(chunk, sums, row, column);
  });
}

std::tuple<Tensor, Tensor> walk_gradients(const ChunkedStrip& s, const Tensor& kept, bool want_rows,
                                          bool want_columns, int64_t workspace_bytes,
                                          const WeighChunk& weigh) {
  const auto options = s.acc_options();
  const auto empty = [&](bool wanted, int64_t rows) {
    return wanted ? at::empty({rows, s.dim}, options) : at::empty({0}, options);
  };
  const Tensor row_grad = empty(want_rows, s.rows), column_grad = empty(want_columns, s.columns);
  if (!want_rows && !want_columns) return {row_grad, column_grad};

  const auto type = s.x.scalar_type();
  const bool is_kept = kept.numel() > 0;
  // fp32 and fp64 weights take the place of the products.
  const bool has_own_weights = is_kept || is_half(s.x);
  const double element_bytes = (is_kept ? 0 : s.acc_bytes()) +
                               (has_own_weights ? static_cast<int64_t>(s.x.element_size()) : 0);
  const ChunkPlan plan = make_plan(s, element_bytes, workspace_bytes);
  const Tensor products = at::empty({is_kept ? 0 : plan.rows, plan.stride()}, options);
  const Tensor weights =
      has_own_weights ? at::empty({plan.rows, plan.stride()}, s.x.options()) : products;
  const MutableRows target = {weights.mutable_data_ptr(), to_dtype(weights.scalar_type()),
                              plan.stride()};
  const double alpha = type == at::kHalf ? 1 / kHalfWeightScale : 1.0;

  for_each_chunk(s, plan, [&](int64_t row, int64_t column) {
    Chunk chunk = make_chunk(s, plan, kept, row, column);
    if (!is_kept) multiply(s, chunk, products, row, column);
    weigh(chunk, target, row, column);
    if (want_rows) {
      gemm(type, {target.data, target.stride, false}, rows_from(s.y, column),
           at_element_mut(row_grad, row * s.dim), s.dim, chunk.rows, s.dim, chunk.columns, alpha,
           column == 0 ? 0.0 : 1.0);
    }
    if (want_columns) {
      gemm(type, {target.data, target.stride, true}, rows_from(s.x, row),
           at_element_mut(column_grad, column * s.dim), s.dim, chunk.columns, s.dim, chunk.rows,
           alpha, row == 0 ? 0.0 : 1.0);
    }
  });
  return {row_grad, column_grad};
}

}  // namespace clipfast

#endif  // CLIPFAST_CUDA

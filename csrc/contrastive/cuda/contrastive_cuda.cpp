// The contrastive operators on CUDA: checks, allocation, the way over the strip in chunks, cuBLAS
// calls, registration. The scheme is told in contrastive_cuda.h.
#ifdef CLIPFAST_CUDA

#include "contrastive_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "arguments.h"
#include "common/torch_cuda.h"

namespace clipfast {
namespace {

using at::Tensor;

// Rows of a chunk below which its GEMMs lose speed; then chunks of columns save memory instead.
constexpr int64_t kLeastRows = 256;
// Rows of a chunk that a launch's grid can hold.
constexpr int64_t kMostRows = 65535 * kTileRows;

bool is_half(const Tensor& t) {
  return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
}

void check_alike(const Tensor& t, const Tensor& like, const char* name) {
  TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device() &&
                  t.size(1) == like.size(1),
              "contrastive: expected ", name, " of ", like.size(1), " columns ", like.scalar_type(),
              " on ", like.device(), ", got ", t.sizes(), " ", t.scalar_type(), " on ", t.device());
}

// Of a matrix without columns too, cuBLAS wants one that is not zero.
int64_t leading_dimension(const Tensor& t) { return std::max<int64_t>(row_stride(t), 1); }

struct Strip {
  Tensor x, y, row_factor, column_factor, scale, bound;
  int64_t rows, columns, dim, first_column;
  bool is_double;

  at::TensorOptions acc_options() const { return row_factor.options(); }
  int64_t acc_bytes() const { return is_double ? 8 : 4; }
};

Strip make_strip(const Tensor& x, const Tensor& y, const Tensor& row_factor,
                 const Tensor& column_factor, const Tensor& scale, const Tensor& bound,
                 int64_t first_column) {
  Strip s;
  s.x = as_matrix(x, "x");
  s.y = as_matrix(y, "y");
  check_alike(y, x, "y");
  s.rows = x.size(0);
  s.columns = y.size(0);
  s.dim = x.size(1);
  s.first_column = first_column;
  TORCH_CHECK(s.rows >= 1 && first_column >= 0 && first_column + s.rows <= s.columns,
              "contrastive: expected the pairs of at least 1 row in columns first_column + row, "
              "got ",
              s.rows, " rows, ", s.columns, " columns and first_column ", first_column);
  TORCH_CHECK(std::max({s.columns, leading_dimension(s.x), leading_dimension(s.y)}) <
                  std::numeric_limits<int32_t>::max() - 8,
              "contrastive: cuBLAS counts in 32 bits, got y ", y.sizes(), ", row strides ",
              leading_dimension(s.x), " and ", leading_dimension(s.y));
  s.row_factor = as_vector(row_factor, s.rows, x, "row_factor");
  s.column_factor = as_vector(column_factor, s.columns, x, "column_factor");
  s.scale = as_vector(scale, 1, x, "scale");
  s.bound = as_vector(bound, 1, x, "bound");
  s.is_double = x.scalar_type() == at::kDouble;
  return s;
}

int64_t round_up(int64_t v, int64_t to) { return tiles(v, to) * to; }

// Chunks of at most rows x columns cover the strip.
struct Plan {
  int64_t rows, columns;

  int64_t chunks(const Strip& s) const { return tiles(s.rows, rows) * tiles(s.columns, columns); }
  // Rows of products and weights begin at multiples of 16 bytes.
  int64_t stride() const { return round_up(columns, 8); }
};

Plan make_plan(const Strip& s, double element_bytes, int64_t workspace_bytes) {
  const auto elements = static_cast<int64_t>(static_cast<double>(workspace_bytes) / element_bytes);
  const int64_t least_rows = std::min(s.rows, kLeastRows);
  int64_t rows = std::min({elements / s.columns, s.rows, kMostRows});
  int64_t columns = s.columns;
  if (rows < least_rows) {
    rows = least_rows;
    columns = std::max(elements / rows / kTileColumns, int64_t{1}) * kTileColumns;
  }
  if (rows < s.rows) {
    // Chunks of one size rather than a small last one.
    const int64_t count = tiles(s.rows, rows / kTileRows * kTileRows);
    rows = round_up(tiles(s.rows, count), kTileRows);
  }
  return {rows, std::min(columns, s.columns)};
}

ContrastiveChunk make_chunk(const Strip& s, const Plan& plan, int64_t row, int64_t column) {
  ContrastiveChunk chunk{};
  chunk.row_factor = at_element(s.row_factor, row);
  chunk.column_factor = at_element(s.column_factor, column);
  chunk.scale = s.scale.const_data_ptr();
  chunk.bound = s.bound.const_data_ptr();
  chunk.products_stride = plan.stride();
  chunk.rows = std::min(plan.rows, s.rows - row);
  chunk.columns = std::min(plan.columns, s.columns - column);
  chunk.pair = s.first_column + row - column;
  chunk.log_columns = std::log(static_cast<double>(s.columns));
  chunk.is_double = s.is_double;
  return chunk;
}

void set_kept(ContrastiveChunk& chunk, const Tensor& kept, int64_t row, int64_t column) {
  chunk.kept = at_element_mut(kept, row * kept.stride(0) + column);
  chunk.kept_stride = kept.stride(0);
  chunk.is_kept_short = kept.scalar_type() == at::kShort;
}

// Calls visit(row, column) with the first row and column of every chunk.
template <typename Visit>
void for_each_chunk(const Strip& s, const Plan& plan, const Visit& visit) {
  for (int64_t row = 0; row < s.rows; row += plan.rows) {
    for (int64_t column = 0; column < s.columns; column += plan.columns) visit(row, column);
  }
}

cudaDataType_t to_cuda(at::ScalarType type) {
  switch (type) {
    case at::kHalf:
      return CUDA_R_16F;
    case at::kBFloat16:
      return CUDA_R_16BF;
    case at::kDouble:
      return CUDA_R_64F;
    default:
      return CUDA_R_32F;
  }
}

// A row-major matrix with rows `stride` elements apart, to be used as it lies or transposed.
struct Operand {
  const void* data;
  int64_t stride;
  bool is_transposed;
};

// Row-major: c [m, n] = alpha a [m, k] b [k, n] + beta c, in fp32 (fp64 for fp64).
//
// cuBLAS is column-major: what it is shown as a matrix with leading dimension `stride` is the
// transpose of ours. So it is asked for c^T = b^T a^T: b first, n before m, and a plain operand
// stays plain in its eyes. fp32 follows torch.backends.cuda.matmul.allow_tf32, which torch sets on
// the handle. No sum is rounded below fp32, since c is fp32.
void gemm(at::ScalarType type, const Operand& a, const Operand& b, void* c, int64_t c_stride,
          int64_t m, int64_t n, int64_t k, double alpha, double beta) {
  if (m == 0 || n == 0) return;
  const bool is_double = type == at::kDouble;
  const float alpha_float = static_cast<float>(alpha), beta_float = static_cast<float>(beta);
  const auto operation = [](const Operand& x) {
    return x.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  const auto scalar = [&](const double& wide, const float& single) -> const void* {
    if (is_double) return &wide;
    return &single;
  };
  TORCH_CUDABLAS_CHECK(cublasGemmEx(
      at::cuda::getCurrentCUDABlasHandle(), operation(b), operation(a), static_cast<int>(n),
      static_cast<int>(m), static_cast<int>(k), scalar(alpha, alpha_float), b.data, to_cuda(type),
      static_cast<int>(b.stride), a.data, to_cuda(type), static_cast<int>(a.stride),
      scalar(beta, beta_float), c, is_double ? CUDA_R_64F : CUDA_R_32F, static_cast<int>(c_stride),
      is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

Operand rows_of(const Tensor& t, int64_t first, bool is_transposed = false) {
  return {at_element(t, first * row_stride(t)), leading_dimension(t), is_transposed};
}

// products = x y^T over the chunk.
void multiply(const Strip& s, const ContrastiveChunk& chunk, int64_t row, int64_t column) {
  gemm(s.x.scalar_type(), rows_of(s.x, row), rows_of(s.y, column, true), chunk.products,
       chunk.products_stride, chunk.rows, chunk.columns, s.dim, 1.0, 0.0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> statistics(
    const Tensor& x, const Tensor& y, const Tensor& row_factor, const Tensor& column_factor,
    const Tensor& scale, const Tensor& bound, int64_t first_column, bool keep,
    int64_t workspace_bytes) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Strip s = make_strip(x, y, row_factor, column_factor, scale, bound, first_column);
  const auto options = s.acc_options();
  const Tensor row_max = at::empty({s.rows}, options), row_sum = at::empty({s.rows}, options);
  const Tensor column_max = at::empty({s.columns}, options);
  const Tensor column_sum = at::empty({s.columns}, options);
  const Tensor shift = at::empty({1}, options);
  const auto kept_options = is_half(x) ? options.dtype(at::kShort) : options;
  const Tensor kept =
      keep ? at::empty({s.rows, s.columns}, kept_options) : at::empty({0}, kept_options);

  // A product, and its share in the partial sums and maxima.
  const double element_bytes = s.acc_bytes() * (1 + 2.0 / kTileRows + 2.0 / kTileColumns);
  const Plan plan = make_plan(s, element_bytes, workspace_bytes);
  const Tensor products = at::empty({plan.rows, plan.stride()}, options);
  const Tensor row_partial = at::empty({2, tiles(plan.columns, kTileColumns), plan.rows}, options);
  const Tensor column_partial = at::empty({2, tiles(plan.rows, kTileRows), plan.columns}, options);
  const Tensor chunk_sum = at::empty({plan.rows + plan.columns}, options);
  const Tensor flags = at::zeros({plan.chunks(s) + 1}, options.dtype(at::kInt));
  int32_t* flag = flags.mutable_data_ptr<int32_t>();

  for_each_chunk(s, plan, [&](int64_t row, int64_t column) {
    ContrastiveChunk chunk = make_chunk(s, plan, row, column);
    chunk.products = products.mutable_data_ptr();
    if (keep) set_kept(chunk, kept, row, column);
    multiply(s, chunk, row, column);
    const ContrastiveSums sums = {row_partial.mutable_data_ptr(),
                                  column_partial.mutable_data_ptr(),
                                  chunk_sum.mutable_data_ptr(),
                                  at_element_mut(row_max, row),
                                  at_element_mut(row_sum, row),
                                  at_element_mut(column_max, column),
                                  at_element_mut(column_sum, column),
                                  flag++,
                                  row == 0,
                                  column == 0};
    check_launch(launch_statistics(chunk, sums, current_stream()), "contrastive_statistics");
  });
  const ContrastiveShift last = {row_max.mutable_data_ptr(),
                                 row_sum.mutable_data_ptr(),
                                 column_max.mutable_data_ptr(),
                                 column_sum.mutable_data_ptr(),
                                 shift.mutable_data_ptr(),
                                 s.bound.const_data_ptr(),
                                 flag,
                                 s.rows,
                                 s.columns,
                                 std::log(static_cast<double>(s.columns)),
                                 s.is_double};
  check_launch(launch_shift(last, current_stream()), "contrastive_statistics");
  return {row_max, row_sum, column_max, column_sum, shift, kept};
}

std::tuple<Tensor, Tensor> gradients(const Tensor& x, const Tensor& y, const Tensor& row_factor,
                                     const Tensor& column_factor, const Tensor& scale,
                                     const Tensor& bound, const Tensor& shift_in,
                                     const Tensor& row_lse_in, const Tensor& column_lse_in,
                                     const Tensor& kept_in, int64_t first_column, bool want_rows,
                                     bool want_columns, int64_t workspace_bytes) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Strip s = make_strip(x, y, row_factor, column_factor, scale, bound, first_column);
  const Tensor shift = as_vector(shift_in, 1, x, "shift");
  const Tensor row_lse = as_vector(row_lse_in, s.rows, x, "row_lse");
  const Tensor column_lse = as_vector(column_lse_in, s.columns, x, "column_lse");
  const bool is_kept = kept_in.numel() > 0;
  const auto kept_type = is_half(x) ? at::kShort : s.row_factor.scalar_type();
  TORCH_CHECK(!is_kept || (kept_in.dim() == 2 && kept_in.size(0) == s.rows &&
                           kept_in.size(1) == s.columns && kept_in.scalar_type() == kept_type &&
                           kept_in.device() == x.device()),
              "contrastive_gradients: expected kept of shape [", s.rows, ", ", s.columns,
              "] and type ", kept_type, ", got ", kept_in.sizes(), " ", kept_in.scalar_type());
  const Tensor kept = is_kept ? kept_in.contiguous() : kept_in;
  const auto options = s.acc_options();
  const auto empty = [&](bool wanted, int64_t rows) {
    return wanted ? at::empty({rows, s.dim}, options) : at::empty({0}, options);
  };
  const Tensor row_grad = empty(want_rows, s.rows), column_grad = empty(want_columns, s.columns);
  if (!want_rows && !want_columns) return {row_grad, column_grad};

  // fp32 and fp64 weights take the place of the products.
  const bool has_own_weights = is_kept || is_half(x);
  const double element_bytes = (is_kept ? 0 : s.acc_bytes()) +
                               (has_own_weights ? static_cast<int64_t>(x.element_size()) : 0);
  const Plan plan = make_plan(s, element_bytes, workspace_bytes);
  const Tensor products = at::empty({is_kept ? 0 : plan.rows, plan.stride()}, options);
  const Tensor weights =
      has_own_weights ? at::empty({plan.rows, plan.stride()}, x.options()) : products;
  const double alpha = x.scalar_type() == at::kHalf ? 1 / kHalfWeightScale : 1.0;

  for_each_chunk(s, plan, [&](int64_t row, int64_t column) {
    ContrastiveChunk chunk = make_chunk(s, plan, row, column);
    if (is_kept) {
      set_kept(chunk, kept, row, column);
    } else {
      chunk.products = products.mutable_data_ptr();
      multiply(s, chunk, row, column);
    }
    const ContrastiveWeights args = {shift.const_data_ptr(),
                                     at_element(row_lse, row),
                                     at_element(column_lse, column),
                                     weights.mutable_data_ptr(),
                                     plan.stride(),
                                     to_dtype(weights.scalar_type())};
    check_launch(launch_weights(chunk, args, current_stream()), "contrastive_gradients");
    if (want_rows) {
      gemm(x.scalar_type(), {weights.const_data_ptr(), plan.stride(), false}, rows_of(s.y, column),
           at_element_mut(row_grad, row * s.dim), s.dim, chunk.rows, s.dim, chunk.columns, alpha,
           column == 0 ? 0.0 : 1.0);
    }
    if (want_columns) {
      gemm(x.scalar_type(), {weights.const_data_ptr(), plan.stride(), true}, rows_of(s.x, row),
           at_element_mut(column_grad, column * s.dim), s.dim, chunk.columns, s.dim, chunk.rows,
           alpha, row == 0 ? 0.0 : 1.0);
    }
  });
  return {row_grad, column_grad};
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CUDA, m) {
  m.impl("contrastive_statistics", &statistics);
  m.impl("contrastive_gradients", &gradients);
}

}  // namespace clipfast

#endif  // CLIPFAST_CUDA

// The strip's checks, and how it is cut into chunks.
#ifdef CLIPFAST_CUDA

#include "strip.h"

#include <algorithm>
#include <limits>

#include "arguments.h"

namespace clipfast {
namespace {

// Rows of a chunk below which its GEMMs lose speed; then chunks of columns save memory instead.
constexpr int64_t kLeastRows = 256;
// Rows of a chunk that a launch's grid can hold.
constexpr int64_t kMostRows = 65535 * kTileRows;

int64_t round_up(int64_t v, int64_t to) { return tiles(v, to) * to; }

void check_alike(const at::Tensor& t, const at::Tensor& like, const char* name) {
  TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device() &&
                  t.size(1) == like.size(1),
              "contrastive: expected ", name, " of ", like.size(1), " columns ", like.scalar_type(),
              " on ", like.device(), ", got ", t.sizes(), " ", t.scalar_type(), " on ", t.device());
}

}  // namespace

int64_t leading_dimension(const at::Tensor& t) { return std::max<int64_t>(row_stride(t), 1); }

bool is_half(const at::Tensor& t) {
  return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
}

ChunkedStrip make_strip(const at::Tensor& x, const at::Tensor& y, const at::Tensor& row_factor,
                        const at::Tensor& column_factor, const at::Tensor& scale,
                        const at::Tensor& bound, int64_t first_column) {
  ChunkedStrip s;
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

ChunkPlan make_plan(const ChunkedStrip& s, double element_bytes, int64_t workspace_bytes) {
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

Chunk make_chunk(const ChunkedStrip& s, const ChunkPlan& plan, const at::Tensor& kept, int64_t row,
                 int64_t column) {
  Chunk chunk{};
  chunk.row_factor = at_element(s.row_factor, row);
  chunk.column_factor = at_element(s.column_factor, column);
  chunk.scale = s.scale.const_data_ptr();
  chunk.bound = s.bound.const_data_ptr();
  chunk.products_stride = plan.stride();
  chunk.rows = std::min(plan.rows, s.rows - row);
  chunk.columns = std::min(plan.columns, s.columns - column);
  chunk.pair = s.first_column + row - column;
  chunk.is_double = s.is_double;
  if (kept.numel() > 0) {
    chunk.kept = at_element_mut(kept, row * kept.stride(0) + column);
    chunk.kept_stride = kept.stride(0);
    chunk.is_kept_short = kept.scalar_type() == at::kShort;
  }
  return chunk;
}

}  // namespace clipfast

#endif  // CLIPFAST_CUDA

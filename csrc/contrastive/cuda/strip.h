// One rank's strip of logits on CUDA, and the chunks that it is made in.
#pragma once

#include <ATen/core/Tensor.h>

#include "chunk.h"

namespace clipfast {

struct ChunkedStrip {
  at::Tensor x, y, row_factor, column_factor, scale, bound;
  int64_t rows, columns, dim, first_column;
  bool is_double;

  at::TensorOptions acc_options() const { return row_factor.options(); }
  int64_t acc_bytes() const { return is_double ? 8 : 4; }
};

// From an operator's arguments; throws where they do not belong together.
ChunkedStrip make_strip(const at::Tensor& x, const at::Tensor& y, const at::Tensor& row_factor,
                        const at::Tensor& column_factor, const at::Tensor& scale,
                        const at::Tensor& bound, int64_t first_column);

// What cuBLAS is told of a matrix: not zero, also where it has no columns.
int64_t leading_dimension(const at::Tensor& t);

bool is_half(const at::Tensor& t);

// Chunks of at most rows x columns cover the strip.
struct ChunkPlan {
  int64_t rows, columns;

  int64_t chunks(const ChunkedStrip& s) const {
    return tiles(s.rows, rows) * tiles(s.columns, columns);
  }
  // Rows of products and weights begin at multiples of 16 bytes.
  int64_t stride() const { return tiles(columns, 8) * 8; }
};

// element_bytes: that a chunk needs per logit.
ChunkPlan make_plan(const ChunkedStrip& s, double element_bytes, int64_t workspace_bytes);

// The chunk whose first row and column these are, without products.
//   kept: [B, G], or empty
Chunk make_chunk(const ChunkedStrip& s, const ChunkPlan& plan, const at::Tensor& kept, int64_t row,
                 int64_t column);

// Calls visit(row, column) with the first row and column of every chunk.
template <typename Visit>
void for_each_chunk(const ChunkedStrip& s, const ChunkPlan& plan, const Visit& visit) {
  for (int64_t row = 0; row < s.rows; row += plan.rows) {
    for (int64_t column = 0; column < s.columns; column += plan.columns) visit(row, column);
  }
}

}  // namespace clipfast

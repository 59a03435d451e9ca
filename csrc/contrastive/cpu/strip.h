// One rank's strip of logits on the CPU: who walks over it, and what a walk hands to a rule.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "tile.h"

namespace clipfast {

constexpr float kNoMaximum = -std::numeric_limits<float>::infinity();

// Everything but the products: sizes, features and the vectors of the tiles.
struct Strip {
  at::Tensor x;                // [B, D] float32 or bfloat16, contiguous
  at::Tensor y;                // [G, D] the same
  const float* row_scale;      // [B] s f_i log2(e)
  const float* row_factor;     // [B] f
  const float* column_factor;  // [G] g
  int64_t first_column;        // of S, which row 0 pairs with
  int64_t rows, columns, width;

  Tile tile(const float* products, int64_t stride, int64_t row, int64_t tile_rows, int64_t column,
            int64_t tile_columns) const {
    return {products,
            stride,
            tile_columns,
            tile_rows,
            column,
            row,
            row_scale + row,
            column_factor + column,
            column - first_column - row};
  }
};

// A strip and what it points to, from an operator's arguments.
struct OwnedStrip {
  at::Tensor row_factor, column_factor;
  std::vector<float> row_scale;
  Strip strip;

  // Throws where the arguments do not belong together.
  OwnedStrip(const at::Tensor& x, const at::Tensor& y, const at::Tensor& row_factor,
             const at::Tensor& column_factor, const at::Tensor& scale, int64_t first_column);
};

void check_vector(const at::Tensor& t, int64_t size, const char* name);

// What a rule does with a tile. Called from several threads at once, once for each tile.
//   row_sum [tile.rows] and column_sum [tile.columns]: overwritten
using TileSums = std::function<void(const Tile& tile, float* row_sum, float* column_sum)>;
//   weights [tile.columns, tile.rows], tile.stride apart: overwritten; may be tile.products
using TileWeights = std::function<void(const Tile& tile, float* weights)>;

// Running (maximum, sum relative to it) pairs that a rule merges a tile's logits into.
struct TilePairs {
  float* row_max;      // [tile.rows]
  double* row_sum;     // [tile.rows]
  float* column_max;   // [tile.columns]
  double* column_sum;  // [tile.columns]
};
//   logits [tile.columns, tile.rows]: scratch
using TileMaxima = std::function<void(const Tile& tile, float* logits, const TilePairs& pairs)>;

// Sums over the strip. Doubles, since those of many tiles add up.
struct Sums {
  std::vector<double> row, column;
};

// Sums relative to each row's and column's own maximum, in units of ln 2.
struct Maxima : Sums {
  std::vector<float> row_max, column_max;

  // Merges a (maximum, sum) pair into a row's.
  void add_to_row(int64_t i, float part_max, double part_sum);
};

// How the products are made. Every driver walks over blocks of rows and, inside, tiles of columns.
// What is done with their logits is told by the caller. `kept` [B G] holds the products of the
// whole strip in the driver's own order, or is null.
class StripDriver {
 public:
  virtual ~StripDriver() = default;
  // Adds into sums, zeros at first; writes `kept` where it is there.
  virtual void sums(const Strip& strip, const TileSums& add_up, float* kept, Sums& sums) = 0;
  // Merges into maxima, zeros and kNoMaximum at first; reads `kept` where it is there.
  virtual void maxima(const Strip& strip, const TileMaxima& merge, const float* kept,
                      Maxima& maxima) = 0;
  // Overwrites row_grad [B, D] with Q y and adds Q^T x into column_grad [G, D]; either may be
  // undefined. Reads `kept` where it is there.
  virtual void gradients(const Strip& strip, const TileWeights& weigh, const float* kept,
                         at::Tensor row_grad, at::Tensor column_grad) = 0;
};

// Small tiles through oneDNN's block product. Null where this machine or this torch has none that
// is worth it for the type.
StripDriver* brgemm_driver(at::ScalarType type);
// Large tiles through torch's matrix product; float32, on any machine.
StripDriver* blas_driver();
// The better of the two; throws where none serves the type.
StripDriver* driver_for(at::ScalarType type);

}  // namespace clipfast

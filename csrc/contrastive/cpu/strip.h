// One rank's strip of logits on the CPU: what the two drivers share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "contrastive/contrastive.h"

namespace clipfast {

constexpr float kNoMaximum = -std::numeric_limits<float>::infinity();

// Everything but the products: sizes, features and the vectors of the epilogues.
struct Strip {
  at::Tensor x;                // [B, D] float32 or bfloat16, contiguous
  at::Tensor y;                // [G, D] the same
  const float* lane_scale;     // [B] s f_i log2(e)
  const float* row_factor;     // [B] f
  const float* column_factor;  // [G] g
  int64_t first_column;
  int64_t rows, columns, width;

  Tile tile(const float* products, int64_t stride, int64_t row, int64_t lanes, int64_t column,
            int64_t outers) const {
    return {products,
            stride,
            outers,
            lanes,
            lane_scale + row,
            column_factor + column,
            column - first_column - row};
  }
};

// Sums over the strip: relative to one shift, or to each row's and column's own maximum. Doubles,
// since those of many tiles add up.
struct Sums {
  std::vector<double> row, column;
  std::vector<float> row_max, column_max;  // in units of ln 2; only where maxima are used

  // Merges a (maximum, sum) pair into a row's.
  void add_to_row(int64_t i, float part_max, double part_sum) {
    if (part_max == kNoMaximum) return;
    const float largest = row_max[i] > part_max || row_max[i] != row_max[i] ? row_max[i] : part_max;
    const auto rescaled = [&](float from, double sum) {
      return from == kNoMaximum ? 0.0 : sum * std::exp2(static_cast<double>(from) - largest);
    };
    row[i] = rescaled(row_max[i], row[i]) + rescaled(part_max, part_sum);
    row_max[i] = largest;
  }
};

// The vectors of the backward epilogue, see TileWeights.
struct WeightVectors {
  const float* lane_weight;   // [B]
  const float* outer_weight;  // [G]
  bool exact;
  float shift;  // in units of ln 2

  TileWeights tile(const Strip& strip, const Tile& tile, int64_t row, int64_t column,
                   float* target) const {
    return {tile,
            target,
            exact,
            shift,
            strip.row_factor + row,
            lane_weight + row,
            outer_weight + column};
  }
};

// How the products are made. Every driver walks over blocks of rows and, inside, tiles of columns.
// `kept` [B G] holds the products of the whole strip in the driver's own order, or is null.
class StripDriver {
 public:
  virtual ~StripDriver() = default;
  // Adds into sums.row and sums.column, zeros at first.
  virtual void statistics(const Strip& strip, float shift, float* kept, Sums& sums) = 0;
  // Merges into all four of sums, zeros and kNoMaximum at first; reads `kept` where it is there.
  virtual void maxima(const Strip& strip, const float* kept, Sums& sums) = 0;
  // Overwrites row_grad [B, D] and adds into column_grad [G, D]; either may be undefined.
  virtual void gradients(const Strip& strip, const WeightVectors& weights, const float* kept,
                         at::Tensor row_grad, at::Tensor column_grad) = 0;
};

// Small tiles through oneDNN's block product. Null where this machine or this torch has none that
// is worth it for the type.
StripDriver* brgemm_driver(at::ScalarType type);
// Large tiles through torch's matrix product; float32, on any machine.
StripDriver* blas_driver();

}  // namespace clipfast

// What softmax does with the logits of a tile on the CPU.
//
//   sums       e = exp(S - a), a one shift for all rows and columns
//   maxima     sums relative to the largest logit of each row and column, where no shift serves
//   weights    P = exp(S - row_lse) + exp(S - column_lse);  Q = P f g
#pragma once

#include "common/cpu_dispatch.h"
#include "tile.h"

namespace clipfast {

struct SoftmaxShift {
  float shift;  // log2(e) a
};

// Adds into running (largest, sum relative to it) pairs.
struct SoftmaxMaxima {
  Tile tile;
  float* logits;       // [columns, rows] scratch
  float* row_max;      // [rows] in units of ln 2
  double* row_sum;     // [rows]
  float* column_max;   // [columns] in units of ln 2
  double* column_sum;  // [columns]
};

// With a shift: Q = 2^(S - shift) g (row_weight + column_weight f), one exponential for both terms.
// Without (exact): Q = (2^(S - row_lse) + 2^(S - column_lse)) f g. Vectors begin with the tile.
struct SoftmaxWeights {
  bool exact;
  float shift;                 // log2(e) a
  const float* row_factor;     // [rows] f_i
  const float* row_weight;     // [rows] shift: 2^(shift - row_lse) f_i; exact: row_lse log2(e)
  const float* column_weight;  // [columns] shift: 2^(shift - column_lse); exact: column_lse log2(e)
};

// See add_up_tile, whose row_sum and column_sum these are.
CLIPFAST_DECLARE_CPU_KERNEL(softmax_sums, const Tile& tile, const SoftmaxShift& args,
                            float* row_sum, float* column_sum)
CLIPFAST_DECLARE_CPU_KERNEL(softmax_maxima, const SoftmaxMaxima& args)
// See weigh_tile, whose weights these are.
CLIPFAST_DECLARE_CPU_KERNEL(softmax_weights, const Tile& tile, const SoftmaxWeights& args,
                            float* weights)

}  // namespace clipfast

// Batch norm over channels_last rows, fused with what follows it in a residual network: the sum
// with a residual, ReLU, a 2x2 average pool, and in the backward pass the sum of two gradients.
//
//   mean, var  of each channel over the n = B H W rows of x       inv_std = 1 / sqrt(var + eps)
//   y = max(0, (x - mean) inv_std weight + bias + residual)       pooled = 2x2 means of y
//
//   dz = (dy + d'y + pooled's gradient / 4) [y > 0]               grad_residual = dz
//   grad_bias = sum dz        grad_weight = inv_std sum dz (x - mean)
//   grad_x = inv_std weight (dz - grad_bias / n - (x - mean) inv_std grad_weight / n)
//
// Passes over an activation, with the eager operators' count beside them:
//
//   forward, ReLU              read x twice, write y                          3     (5)
//   forward, residual, ReLU    the same, and read the residual                4     (8)
//   forward, ReLU, pool        read x twice, write a quarter                  2.25  (6.25)
//   backward, ReLU             read x and dy twice, write grad_x              5     (8)
//   backward, residual, ReLU   read x twice, dy, d'y and y once, write and
//                              read dz, write grad_x                          8     (11)
//
// Where no residual is added, [y > 0] is found again from x, so y is not read. The second pass runs
// from the last row to the first: what the first pass left in the cache is read before it goes.
//
// Sums are float32 within a tile of at most 64 rows (float64 for float64) and float64 across tiles.
// The variance is summed around the mean of each tile's first rows, which costs no second reading
// and no cancellation. Tiles depend on the shape alone, so the same bits come out for any number of
// threads.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/scalar_type.h"

namespace clipfast {

// Rows of C adjacent channels, one after another. Statistics and coefficients are float32, or
// float64 when the rows are: "acc" below.
struct BatchNormRows {
  DType dtype;
  int64_t rows;       // n = B * H * W
  int64_t channels;   // C
  int64_t width;      // W, even where something is pooled; B * H is then even too
  int64_t tile_rows;  // rows that are summed in acc
  bool streams;       // results go past the cache; rows then lie on 64-byte boundaries

  int64_t tiles() const { return (rows + tile_rows - 1) / tile_rows; }
};

struct BatchNormMomentArgs {
  BatchNormRows shape;
  const void* x;  // [n, C]
  void* moments;  // [tiles, 3, C] acc: sums around the tile's mean, its shift, its mean less that
};

struct BatchNormStatisticsArgs {
  BatchNormRows shape;
  const void* moments;  // [tiles, 3, C] acc
  double eps;
  void* mean;     // [C] acc, and the two below
  void* inv_std;  // 1 / sqrt(var + eps)
  void* var;      // mean squared distance from the mean
};

struct BatchNormApplyArgs {
  BatchNormRows shape;
  const void* x;         // [n, C]
  const void* residual;  // [n, C] or nullptr
  const void* mean;      // [C] acc
  const void* scale;     // [C] acc, inv_std * weight
  const void* bias;      // [C] acc
  void* y;               // [n, C], or nullptr: only the pooled rows are wanted
  void* pooled;          // [n / 4, C] or nullptr
  bool relu;
};

// A gradient of y ([n, C]), or of its pooled rows ([n / 4, C]).
struct BatchNormGradient {
  const void* rows;  // nullptr: there is none
  bool pooled;
};

struct BatchNormSumArgs {
  BatchNormRows shape;
  BatchNormGradient grad, other;  // `other` may be absent
  const void* x;                  // [n, C]
  const void* y;                  // [n, C]; nullptr: the mask, if any, comes from x
  const void* mean;               // [C] acc
  const void* scale;              // [C] acc, inv_std * weight
  const void* bias;               // [C] acc
  bool relu;
  void* grad_residual;  // [n, C], or nullptr: not wanted
  void* sums;           // [tiles, 2, C] acc: sums of dz and of dz (x - mean)
};

struct BatchNormCoefficientArgs {
  BatchNormRows shape;
  const void* sums;     // [tiles, 2, C] acc
  const void* inv_std;  // [C] acc
  const void* scale;    // [C] acc
  void* grad_weight;    // [C] acc, and the three below
  void* grad_bias;
  void* slope;   // -scale inv_std grad_weight / n
  void* offset;  // -scale grad_bias / n
};

struct BatchNormGradXArgs {
  BatchNormSumArgs sum;  // where grad_residual was written, it is read in place of grad and y
  const void* slope;     // [C] acc
  const void* offset;    // [C] acc
  void* grad_x;          // [n, C]: scale dz + slope (x - mean) + offset
};

// Tiles [begin, end).
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(batch_norm_moments, BatchNormMomentArgs)
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(batch_norm_sums, BatchNormSumArgs)
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(batch_norm_grad_x, BatchNormGradXArgs)
// Tiles [begin, end); where something is pooled, pairs of image rows [begin, end).
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(batch_norm_apply, BatchNormApplyArgs)
// Channels [begin, end).
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(batch_norm_statistics, BatchNormStatisticsArgs)
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(batch_norm_coefficients, BatchNormCoefficientArgs)

}  // namespace clipfast

// The contrastive loss on one rank's strip of logits: what its CPU kernels take.
//
//   S_ij = s f_i g_j <x_i, y_j>    B rows i (images), G columns j (texts), D width
//   P_ij = exp(S_ij - row_lse_i) + exp(S_ij - column_lse_j)     Q_ij = P_ij f_i g_j
//
// Logits exist only as tiles in cache, between the product that makes them and the epilogue that
// turns them into sums (forward) or weights Q (backward). A tile holds C columns ("outers") by R
// rows ("lanes"): the product is y x^T, so the vector lanes run over images. The pair of a column,
// the image that belongs to the text, gets weight zero everywhere here.
// The operators, their arguments and the caller's part: clipfast/ops/contrastive.py.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"

namespace clipfast {

// Logits in units of ln 2, so that exponentials are powers of two: S log2(e) = product * lane_scale
// * outer_factor.
struct Tile {
  const float* products;      // [outers, lanes] <y_j, x_i>, rows `stride` apart
  int64_t stride;             // elements
  int64_t outers;             // columns of S in this tile
  int64_t lanes;              // rows of S in this tile
  const float* lane_scale;    // [lanes] s f_i log2(e)
  const float* outer_factor;  // [outers] g_j
  int64_t pair_shift;         // outer c meets its pair in lane c + pair_shift, if that is a lane
};

struct TileStatistics {
  Tile tile;
  float shift;       // log2(e) a
  float* lane_sum;   // [lanes] overwritten by sum_c 2^(S - shift)
  float* outer_sum;  // [outers] overwritten by the sum over lanes
};

// Adds into running (largest, sum relative to it) pairs; for logits that no single shift serves.
struct TileMaxima {
  Tile tile;
  float* logits;      // [outers, lanes] scratch
  float* lane_max;    // [lanes]
  double* lane_sum;   // [lanes]
  float* outer_max;   // [outers]
  double* outer_sum;  // [outers]
};

// With a shift: Q = 2^(S - shift) g (lane_weight + outer_weight f), one exponential for both terms.
// Without (exact): Q = (2^(S - lane_lse) + 2^(S - outer_lse)) f g.
struct TileWeights {
  Tile tile;
  float* weights;  // [outers, lanes] out, rows `stride` apart; may be the products themselves
  bool exact;
  float shift;                // log2(e) a
  const float* lane_factor;   // [lanes] f_i
  const float* lane_weight;   // [lanes] shift: 2^(shift - lane_lse) f_i; exact: lane_lse log2(e)
  const float* outer_weight;  // [outers] shift: 2^(shift - outer_lse); exact: outer_lse log2(e)
};

// What the packing kernels read and write: matrices with adjacent elements in a row.
struct Matrix {
  const void* source;  // [rows, columns]
  int64_t source_stride;
  int64_t rows;
  int64_t columns;
  void* target;
  int64_t target_stride;
};

CLIPFAST_DECLARE_CPU_KERNEL(tile_statistics, const TileStatistics& args)
CLIPFAST_DECLARE_CPU_KERNEL(tile_maxima, const TileMaxima& args)
CLIPFAST_DECLARE_CPU_KERNEL(tile_weights, const TileWeights& args)

// target [columns, rows] = source^T, 32-bit elements.
CLIPFAST_DECLARE_CPU_KERNEL(transpose, const Matrix& args)
// target [columns, rows] = source^T, float to bfloat16.
CLIPFAST_DECLARE_CPU_KERNEL(transpose_to_bf16, const Matrix& args)
// target [rows, columns] = source, float to bfloat16.
CLIPFAST_DECLARE_CPU_KERNEL(round_to_bf16, const Matrix& args)
// target [(rows + 1) / 2, columns, 2] of bfloat16: rows 2k and 2k + 1 interleaved, as the products
// of pairs want their right operand; a missing last row counts as zeros.
CLIPFAST_DECLARE_CPU_KERNEL(interleave_rows, const Matrix& args)

// Whether bfloat16 features are multiplied as such here, by instructions made for it.
bool has_bfloat16_product();

}  // namespace clipfast

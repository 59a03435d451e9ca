// A chunk of one rank's strip of logits on CUDA: what the kernels that read it take. Free of torch
// and CUDA headers.
#pragma once

#include <cstdint>

#include "common/rows.h"
#include "contrastive/constants.h"

namespace clipfast {

// A tile of a chunk: what one thread block reads. Chunks of columns begin at multiples of it.
constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 256;

constexpr int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// rows x columns of the strip. acc below is float, or double where is_double.
struct Chunk {
  void* products;             // [rows, columns] acc <x_i, y_j>, rows products_stride apart, 16-byte
                              // aligned; null where gradients work from kept logits
  const void* row_factor;     // [rows] acc
  const void* column_factor;  // [columns] acc
  const void* scale;          // [1] acc
  const void* bound;          // [1] acc
  void* kept;               // [rows, columns] rows kept_stride apart, or null: acc, or int16 where
                            // is_kept_short: S = kept bound / kKeptSteps
  int64_t products_stride;  // elements, a multiple of 4
  int64_t kept_stride;      // elements
  int64_t rows;
  int64_t columns;
  int64_t pair;  // the column that pairs with row 0; row i pairs with pair + i. Counted from the
                 // chunk's first column, and may lie outside of the chunk
  bool is_double;
  bool is_kept_short;
};

// What the walk over a chunk adds up, all acc. The second half of the partials is the rule's own.
struct ChunkSums {
  void* row_partial;     // [2, tiles of columns, rows]: sums
  void* column_partial;  // [2, tiles of rows, columns]: sums
  void* total;           // [rows + columns]: sums over the chunk, of rows, then of columns
};

// Q of a chunk as `MutableRows`: [rows, columns], 16-byte aligned, its stride a multiple of 4. May
// be the products where both are acc; of float64 where is_double, else of one of the other types.
// Times kHalfWeightScale in fp16.

}  // namespace clipfast

// The contrastive operators on CUDA, sm_70 and newer: cuBLAS makes a chunk of products, fused
// epilogues read it once. clipfast/ops/contrastive.py has the maths and the legend (B, G, D, S).
//
// The strip S is never whole in memory. contrastive_cuda.cpp goes over it in chunks of rows (and of
// columns, where even 256 rows would not fit the workspace), each one GEMM <x_i, y_j> in fp32
// (fp64 for fp64) followed by
//
//   statistics  launch_statistics: one read of the chunk gives row and column sums of exp(S)
//   gradients   launch_weights: one read gives Q in the work type, for two more GEMMs
//
// Sums over a chunk. A tile of 64 x 256 elements writes one partial sum a row and one a column;
// a second kernel adds them in a fixed order. There are no atomics, so results are the same bits on
// every run. Every row and column result is a pair (max, sum) that stands for sum exp(max):
//
//   - exp(S - a) with the one shift a serves rows and columns alike, so a chunk's pairs are
//     (a, sum). Where one of its sums is not in [2^-100, inf), the chunk's flag goes up.
//   - The exact kernel returns at once unless the flag is up. It reads the chunk, still in memory,
//     again and makes pairs from the true maxima of each tile's rows and columns. So nothing
//     is read on the host, and the GEMM is not run twice.
//   - Pairs of chunks are folded into the result in the order of the chunks.
//   - At the end every result that can be is expressed by a again. If all can, the shift was a;
//     else it is NaN and the pairs stay as they are (rows of chunks that were well keep max = a).
//     A chunk's flag alone so decides nothing but time: a column whose few terms in one chunk
//     vanished may have others.
#pragma once

#include <cstdint>

#include "common/scalar_type.h"
#include "contrastive/constants.h"

namespace clipfast {

// A tile of the epilogues. Chunks of columns begin at multiples of it.
constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 256;

constexpr int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// One chunk: rows x columns of the strip. acc below is float, or double where is_double.
struct ContrastiveChunk {
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
  int64_t pair;        // the column that pairs with row 0; row i pairs with pair + i. Counted
                       // from the chunk's first column, and may lie outside of the chunk
  double log_columns;  // ln G
  bool is_double;
  bool is_kept_short;
};

// Scratch and results of the statistics of one chunk. All acc but the flag.
struct ContrastiveSums {
  void* row_partial;     // [2, tiles of columns, rows]: sums, then maxima (exact form only)
  void* column_partial;  // [2, tiles of rows, columns]
  void* chunk_sum;       // [rows + columns]
  void* row_max;         // [rows] the running pairs of the strip's rows
  void* row_sum;
  void* column_max;  // [columns]
  void* column_sum;
  int32_t* flag;         // [1] zero at first; 1 where this chunk needs its true maxima
  bool is_first_row;     // the chunk is the first that adds to these columns
  bool is_first_column;  // the chunk is the first that adds to these rows
};

// The last step over the whole strip's pairs.
struct ContrastiveShift {
  void* row_max;       // [rows] acc, in and out, and so on
  void* row_sum;       // [rows]
  void* column_max;    // [columns]
  void* column_sum;    // [columns]
  void* shift;         // [1] acc, out: a, or NaN
  const void* bound;   // [1] acc
  int32_t* flag;       // [1] zero at first
  int64_t rows;        // B
  int64_t columns;     // G
  double log_columns;  // ln G
  bool is_double;
};

// P = exp(S - row_lse) + exp(S - column_lse), zero for the pair; Q = P f_i g_j, times
// kHalfWeightScale in fp16.
struct ContrastiveWeights {
  const void* shift;       // [1] acc: a, or NaN
  const void* row_lse;     // [rows] acc
  const void* column_lse;  // [columns] acc
  void* weights;           // [rows, columns] weights_dtype, rows weights_stride apart, 16-byte
                           // aligned; may be the chunk's products where both are acc
  int64_t weights_stride;  // elements, a multiple of 4
  DType weights_dtype;     // float64 where is_double, else one of the other three
};

// Each works on `stream` (a cudaStream_t) of the current device and returns nullptr, or the
// launch's error in words.
const char* launch_statistics(const ContrastiveChunk& chunk, const ContrastiveSums& sums,
                              void* stream);
const char* launch_shift(const ContrastiveShift& args, void* stream);
const char* launch_weights(const ContrastiveChunk& chunk, const ContrastiveWeights& args,
                           void* stream);

}  // namespace clipfast

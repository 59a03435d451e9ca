// Softmax over the chunks of the strip on CUDA, sm_70 and newer. clipfast/ops/contrastive has the
// maths and the legend (B, G, D, S). Free of torch and CUDA headers.
//
// The strip S is never whole in memory. strip_walk.h goes over it in chunks, each one GEMM
// <x_i, y_j> in fp32 (fp64 for fp64) followed by
//
//   sums     launch_softmax_sums: one read of the chunk gives row and column sums of exp(S)
//   weights  launch_softmax_weights: one read gives Q in the work type, for two more GEMMs
//
// Every row and column result is a pair (max, sum) that stands for sum exp(max):
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

#include "chunk.h"

namespace clipfast {

// Scratch and results of the sums of one chunk. All acc but the flag.
struct SoftmaxSums {
  ChunkSums sums;  // maxima of tiles in the second half of its partials, where the flag is up
  void* row_max;   // [rows] the running pairs of the strip's rows
  void* row_sum;
  void* column_max;  // [columns]
  void* column_sum;
  int32_t* flag;         // [1] zero at first; 1 where this chunk needs its true maxima
  double log_columns;    // ln G
  bool is_first_row;     // the chunk is the first that adds to these columns
  bool is_first_column;  // the chunk is the first that adds to these rows
};

// The last step over the whole strip's pairs.
struct SoftmaxShift {
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

// P = exp(S - row_lse) + exp(S - column_lse), zero for the pair; Q = P f_i g_j.
struct SoftmaxLse {
  const void* shift;       // [1] acc: a, or NaN
  const void* row_lse;     // [rows] acc
  const void* column_lse;  // [columns] acc
};

// Each works on `stream` (a cudaStream_t) of the current device and returns nullptr, or the
// launch's error in words.
const char* launch_softmax_sums(const Chunk& chunk, const SoftmaxSums& sums, void* stream);
const char* launch_softmax_shift(const SoftmaxShift& args, void* stream);
const char* launch_softmax_weights(const Chunk& chunk, const SoftmaxLse& lse,
                                   const MutableRows& weights, void* stream);

}  // namespace clipfast

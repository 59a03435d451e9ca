// The walk over the strip on CUDA: chunks, their products, and the products of the gradients. What
// is done with the logits of a chunk is told by the caller.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <tuple>

#include "strip.h"

namespace clipfast {

// Launches what adds up a chunk whose products were made; (row, column) are its first in the strip.
using AddUpChunk =
    std::function<void(const Chunk& chunk, const ChunkSums& sums, int64_t row, int64_t column)>;
// Launches what writes Q of a chunk, from its products or from what was kept of its logits.
using WeighChunk = std::function<void(const Chunk& chunk, const MutableRows& weights, int64_t row,
                                      int64_t column)>;

// The plan of walk_sums.
ChunkPlan plan_sums(const ChunkedStrip& s, int64_t workspace_bytes);

// Goes over the chunks, from row to row and along each row of them.
//   kept: [B, G] of kept_type(), to be written; or empty
void walk_sums(const ChunkedStrip& s, const ChunkPlan& plan, const at::Tensor& kept,
               const AddUpChunk& add_up);

// (Q y [B, D], Q^T x [G, D]), empty where not wanted.
//   kept: as walk_sums left it; or empty: the products are made again
std::tuple<at::Tensor, at::Tensor> walk_gradients(const ChunkedStrip& s, const at::Tensor& kept,
                                                  bool want_rows, bool want_columns,
                                                  int64_t workspace_bytes, const WeighChunk& weigh);

// What logits are kept in: 16 bits for half-precision features.
at::ScalarType kept_type(const ChunkedStrip& s);

}  // namespace clipfast

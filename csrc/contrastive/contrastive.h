// The contrastive loss on one rank's strip of logits: what its folders share.
//
//   S_ij = s f_i g_j <x_i, y_j>    B rows i (images), G columns j (texts), D width
//   P_ij = exp(S_ij - row_lse_i) + exp(S_ij - column_lse_j)     Q_ij = P_ij f_i g_j
//
//   rows.h     the row operators, on CPU and CUDA
//   cpu/       the strip in tiles: strip.h says who walks over it, tile_walk.h how a tile is read,
//              softmax_rule.h what is done with a logit
//   cuda/      the strip in chunks: chunk.h, walk.cuh and softmax_rule.cuh likewise
//
// The operators, their arguments and the caller's part: clipfast/ops/contrastive.
#pragma once

namespace clipfast {

// Whether bfloat16 features are multiplied as such on this CPU, by instructions made for it.
bool has_bfloat16_product();

}  // namespace clipfast

// A second rule for a logit on CUDA: sigmoid's, with sums of log(1 + exp(S)) and weights
// P = 1 / (1 + exp(-S)). It brings no walk of its own.
#pragma once

#include "contrastive/cuda/chunk.h"

namespace clipfast {

const char* launch_sigmoid_sums(const Chunk& chunk, const ChunkSums& sums, void* stream);
const char* launch_sigmoid_weights(const Chunk& chunk, const MutableRows& weights, void* stream);

}  // namespace clipfast

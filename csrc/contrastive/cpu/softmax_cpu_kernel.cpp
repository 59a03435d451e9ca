// Softmax over tiles of logits; compiled once per CPU capability.
#include <cmath>
#include <limits>
#include <vector>

#include "softmax.h"
#include "softmax_rule.h"
#include "tile_walk.h"

namespace clipfast::CPU_CAPABILITY {

void softmax_sums(const Tile& tile, const SoftmaxShift& args, float* row_sum, float* column_sum) {
  add_up_tile(tile, SoftmaxSumRule{Vec(args.shift)}, row_sum, column_sum);
}

void softmax_weights(const Tile& tile, const SoftmaxWeights& args, float* weights) {
  weigh_tile(tile, SoftmaxWeightRule{args}, weights);
}

// Rare, so plain loops serve.
void softmax_maxima(const SoftmaxMaxima& args) {
  const Tile& tile = args.tile;
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  // Keeps a NaN, so that features with one give a NaN loss.
  const auto larger = [](float a, float b) { return a > b || a != a ? a : b; };
  const auto rescale = [](float from, float to) {
    return from == kNone ? 0.0 : std::exp2(static_cast<double>(from) - to);
  };
  std::vector<float> before(args.row_max, args.row_max + tile.rows);
  for (int64_t c = 0; c < tile.columns; ++c) {
    const int64_t pair = pair_row(tile, c);
    float* logits = args.logits + c * tile.rows;
    float largest = args.column_max[c];
    for (int64_t i = 0; i < tile.rows; ++i) {
      logits[i] = i == pair ? kNone
                            : tile.products[c * tile.stride + i] * tile.row_scale[i] *
                                  tile.column_factor[c];
      largest = larger(logits[i], largest);
      args.row_max[i] = larger(logits[i], args.row_max[i]);
    }
    double total = args.column_sum[c] * rescale(args.column_max[c], largest);
    for (int64_t i = 0; i < tile.rows; ++i) total += rescale(logits[i], largest);
    args.column_max[c] = largest;
    args.column_sum[c] = total;
  }
  for (int64_t i = 0; i < tile.rows; ++i) {
    args.row_sum[i] *= rescale(before[i], args.row_max[i]);
  }
  for (int64_t c = 0; c < tile.columns; ++c) {
    for (int64_t i = 0; i < tile.rows; ++i) {
      args.row_sum[i] += rescale(args.logits[c * tile.rows + i], args.row_max[i]);
    }
  }
}

}  // namespace clipfast::CPU_CAPABILITY

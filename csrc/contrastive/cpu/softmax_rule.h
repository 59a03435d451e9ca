// Softmax's rule for a logit, for the walks of tile_walk.h. For `*_cpu_kernel.cpp` files only,
// which are compiled once per capability.
#pragma once

#include "exp2.h"
#include "softmax.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

struct SoftmaxSumRule {
  Vectorized<float> shift;

  Vectorized<float> operator()(const Vectorized<float>& logit) const { return exp2(logit - shift); }
};

struct SoftmaxWeightRule {
  SoftmaxWeights args;

  auto column(int64_t c) const {
    return [args = args, shift = Vectorized<float>(args.shift),
            column_weight = Vectorized<float>(args.column_weight[c])](
               const auto& logit, const auto& column_factor, const auto& load) {
      const auto row_factor = load(args.row_factor);
      const auto row_weight = load(args.row_weight);
      if (args.exact) {
        return (exp2(logit - row_weight) + exp2(logit - column_weight)) * row_factor *
               column_factor;
      }
      return exp2(logit - shift) * column_factor *
             at::vec::fmadd(column_weight, row_factor, row_weight);
    };
  }
};

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

// Softmax's rules for a logit, for the walks of walk.cuh.
#pragma once

#include "softmax.h"
#include "tiles.cuh"

namespace clipfast {
namespace {

// a = max(0, bound - margin + ln G): G terms exp(S - a) do not overflow. A NaN stays one.
template <typename Acc>
__device__ __forceinline__ Acc fixed_shift(Acc bound, double log_columns) {
  constexpr double kMargin = sizeof(Acc) == 8 ? kShiftMarginDouble : kShiftMargin;
  const Acc a = bound + static_cast<Acc>(log_columns - kMargin);
  return a < 0 ? Acc(0) : a;
}

template <typename Acc>
__device__ __forceinline__ bool is_sound(Acc sum) {
  return sum >= Acc(kSmallestSum) && sum <= Limits<Acc>::kMax;
}

// e = exp(S - a)
struct SoftmaxSumRule {
  const void* bound;   // [1] acc
  double log_columns;  // ln G
  int32_t* flag;       // [1] set to 1 where a sum is useless

  template <typename Acc>
  struct Form {
    Acc shift;  // in units of ln 2

    __device__ __forceinline__ Acc operator()(Acc logit) const {
      return power_of_two(logit - shift);
    }
  };

  template <typename Acc>
  __device__ __forceinline__ Form<Acc> form() const {
    return {fixed_shift(element<Acc>(bound, 0), log_columns) * Acc(kLog2e)};
  }

  template <typename Acc>
  __device__ __forceinline__ void note(Acc total) const {
    if (!is_sound(total)) *flag = 1;
  }
};

// P = exp(S - row_lse) + exp(S - column_lse)
struct SoftmaxWeightRule {
  SoftmaxLse lse;

  // Fixed: with a shift a, values are the factor exp(a - lse) that exp(S - a) lacks. Else they are
  // lse in units of ln 2.
  template <typename Acc, bool Fixed>
  struct Form {
    const SoftmaxLse& lse;
    Acc shift;
    Acc shift2;  // in units of ln 2

    __device__ __forceinline__ Acc value(Acc log_sum) const {
      return Fixed ? natural_exp(shift - log_sum) : log_sum * Acc(kLog2e);
    }

    __device__ __forceinline__ Acc row(int64_t i) const {
      return value(element<Acc>(lse.row_lse, i));
    }

    __device__ __forceinline__ ColumnVector<Acc> columns(const Place& place, int64_t count) const {
      ColumnVector<Acc> column(lse.column_lse, place, count);
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
#pragma unroll
        for (int c = 0; c < kPack; ++c) column.value[k][c] = value(column.value[k][c]);
      }
      return column;
    }

    __device__ __forceinline__ Acc operator()(Acc logit, Acc row_value, Acc column_value) const {
      if constexpr (Fixed) {
        return power_of_two(logit - shift2) * (row_value + column_value);
      } else {
        return power_of_two(logit - row_value) + power_of_two(logit - column_value);
      }
    }
  };

  template <typename Acc, typename Use>
  __device__ __forceinline__ void visit(const Use& use) const {
    const Acc shift = element<Acc>(lse.shift, 0);
    if (shift == shift) {
      use(Form<Acc, true>{lse, shift, shift * Acc(kLog2e)});
    } else {
      use(Form<Acc, false>{lse, shift, shift * Acc(kLog2e)});
    }
  }
};

}  // namespace
}  // namespace clipfast

// Sums over a row of features in one fixed order, and norms. For `*_cpu_kernel.cpp` files only,
// which are compiled once per capability.
#pragma once

#include <cmath>
#include <limits>

#include "common/constants.h"
#include "common/cpu_pair.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

// The sum over a row of what add(total, j, step) adds to a Pair for the elements from j on. Two
// accumulators per vector element hide the latency of the fused multiply-add.
template <typename Acc, typename Add>
inline Acc reduce(int64_t dim, const Add& add) {
  constexpr int64_t kStep = Pair<Acc>::size();
  auto first = splat(Acc(0)), second = splat(Acc(0));
  int64_t j = 0;
  for (; j + 2 * kStep <= dim; j += 2 * kStep) {
    add(first, j, Whole{});
    add(second, j + kStep, Whole{});
  }
  if (j + kStep <= dim) {
    add(first, j, Whole{});
    j += kStep;
  }
  if (j < dim) add(second, j, Tail{dim - j});
  return sum_of(first + second);
}

template <typename X>
acc_t<X> sum_of_squares(const X* x, int64_t dim) {
  using Acc = acc_t<X>;
  return reduce<Acc>(dim, [&](Pair<Acc>& total, int64_t j, auto step) {
    const auto v = step.load(x + j);
    total = fused(v, v, total);
  });
}

// Norms whose squares leave the accumulation type (1e30 or 1e-30 in float32, or a zero row): scale
// the row by a power of two, which rounds nothing, and sum again. Rare, so plain loops serve.
template <typename X>
acc_t<X> scaled_inverse_norm(const X* x, int64_t dim, acc_t<X> threshold) {
  using Acc = acc_t<X>;
  Acc largest = 0;
  for (int64_t j = 0; j < dim; ++j) {
    const Acc v = std::abs(static_cast<Acc>(x[j]));
    if (std::isnan(v)) return v;
    largest = std::max(largest, v);
  }
  if (largest == 0 || std::isinf(largest)) return 0;
  // Clamped so that the scale itself stays a normal number.
  constexpr int kLimit = std::numeric_limits<Acc>::max_exponent - 2;
  const Acc scale = std::ldexp(Acc(1), std::clamp(-std::ilogb(largest), -kLimit, kLimit));
  Acc total = 0;
  for (int64_t j = 0; j < dim; ++j) {
    const Acc v = static_cast<Acc>(x[j]) * scale;
    total += v * v;
  }
  const Acc root = std::sqrt(total);
  return root / scale <= threshold ? Acc(0) : scale / root;
}

template <typename X>
acc_t<X> inverse_norm(const X* x, int64_t dim, double eps) {
  using Acc = acc_t<X>;
  using Limits = std::numeric_limits<Acc>;
  // Below `low` some squares have rounded to zero; above `high` the sum may have overflowed.
  constexpr bool kSingle = std::is_same_v<Acc, float>;
  constexpr Acc low = kSingle ? Acc(kSmallestSquares) : Acc(kSmallestSquaresDouble);
  const Acc threshold = std::max(static_cast<Acc>(eps), Limits::min());
  const Acc total = sum_of_squares(x, dim);
  if (!(total >= low && total <= Limits::max())) return scaled_inverse_norm(x, dim, threshold);
  const Acc norm = std::sqrt(total);
  return norm <= threshold ? Acc(0) : Acc(1) / norm;
}

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

// Rows of features with ATen's vector types: loads and stores that widen 16-bit types, dot products
// in one fixed order, norms. For `*_cpu_kernel.cpp` files only, which compile it once a capability.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/constants.h"
#include "common/scalar_type.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

using at::vec::Vectorized;

template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Two vectors of the accumulation type: what one vector of a 16-bit type widens to.
template <typename Acc>
struct Pair {
  Vectorized<Acc> lo, hi;

  static constexpr int64_t size() { return 2 * Vectorized<Acc>::size(); }
};

template <typename T>
inline Pair<acc_t<T>> load_pair(const T* p) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return {Vectorized<T>::loadu(p), Vectorized<T>::loadu(p + Vectorized<T>::size())};
  } else {
    auto [lo, hi] = at::vec::convert_to_float<T>(Vectorized<T>::loadu(p));
    return {lo, hi};
  }
}

template <typename T>
inline void store_pair(T* p, const Pair<acc_t<T>>& v) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    v.lo.store(p);
    v.hi.store(p + Vectorized<T>::size());
  } else {
    at::vec::convert_from_float<T>(v.lo, v.hi).store(p);
  }
}

// The last elements of a row go through a zero-filled buffer: one form of load and store for every
// type, and no read or write past the row.
template <typename T>
inline Pair<acc_t<T>> load_pair_tail(const T* p, int64_t count) {
  T buffer[Pair<acc_t<T>>::size()] = {};
  std::copy_n(p, count, buffer);
  return load_pair(buffer);
}

template <typename T>
inline void store_pair_tail(T* p, const Pair<acc_t<T>>& v, int64_t count) {
  T buffer[Pair<acc_t<T>>::size()];
  store_pair(buffer, v);
  std::copy_n(buffer, count, p);
}

template <typename Acc>
inline Acc sum_lanes(const Pair<Acc>& v) {
  Acc lanes[Pair<Acc>::size()];
  store_pair(lanes, v);
  // A tree, so that lanes are added in one fixed order and in few roundings.
  for (int64_t half = Pair<Acc>::size() / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// sum_j f(j) over a row, f(j) the Pair of products at elements [j, j + size). Two accumulators a
// lane hide the latency of the fused multiply-add.
template <typename Acc, typename Add, typename AddTail>
inline Acc reduce(int64_t dim, const Add& add, const AddTail& add_tail) {
  constexpr int64_t kStep = Pair<Acc>::size();
  const Vectorized<Acc> zero(Acc(0));
  Pair<Acc> first{zero, zero}, second{zero, zero};
  int64_t j = 0;
  for (; j + 2 * kStep <= dim; j += 2 * kStep) {
    add(first, j);
    add(second, j + kStep);
  }
  if (j + kStep <= dim) {
    add(first, j);
    j += kStep;
  }
  if (j < dim) add_tail(second, j);
  return sum_lanes(Pair<Acc>{first.lo + second.lo, first.hi + second.hi});
}

template <typename Acc>
inline void add_product(Pair<Acc>& total, const Pair<Acc>& a, const Pair<Acc>& b) {
  total.lo = at::vec::fmadd(a.lo, b.lo, total.lo);
  total.hi = at::vec::fmadd(a.hi, b.hi, total.hi);
}

template <typename X>
acc_t<X> sum_of_squares(const X* x, int64_t dim) {
  using Acc = acc_t<X>;
  return reduce<Acc>(
      dim,
      [&](Pair<Acc>& total, int64_t j) {
        const auto v = load_pair(x + j);
        add_product(total, v, v);
      },
      [&](Pair<Acc>& total, int64_t j) {
        const auto v = load_pair_tail(x + j, dim - j);
        add_product(total, v, v);
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

template <typename T>
struct Type {
  using type = T;
};

template <typename Visit>
void visit_single(DType type, const Visit& visit) {
  switch (type) {
    case DType::kFloat16:
      return visit(Type<c10::Half>{});
    case DType::kBFloat16:
      return visit(Type<c10::BFloat16>{});
    default:
      return visit(Type<float>{});
  }
}

// Calls visit(Type<X>, Type<Y>); the caller has checked that float64 comes in pairs.
template <typename Visit>
void visit_types(DType x, DType y, const Visit& visit) {
  if (x == DType::kFloat64) return visit(Type<double>{}, Type<double>{});
  visit_single(x,
               [&](auto x_type) { visit_single(y, [&](auto y_type) { visit(x_type, y_type); }); });
}

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

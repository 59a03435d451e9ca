// Pairs of ATen's vectors: loads and stores that widen 16-bit types, arithmetic, and steps along a
// row. For `*_cpu_kernel.cpp` files only, which are compiled once per capability.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/element_types.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

using at::vec::Vectorized;
using CpuTypes = ElementTypes<c10::Half, c10::BFloat16>;

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

// What a step along a row takes: a whole Pair, or the last elements. store_result() writes what the
// kernel does not read again; some steps send it past the cache.
struct Whole {
  template <typename T>
  Pair<acc_t<T>> load(const T* p) const {
    return load_pair(p);
  }
  template <typename T>
  void store(T* p, const Pair<acc_t<T>>& v) const {
    store_pair(p, v);
  }
  template <typename T>
  void store_result(T* p, const Pair<acc_t<T>>& v) const {
    store_pair(p, v);
  }
};

struct Tail {
  int64_t count;

  template <typename T>
  Pair<acc_t<T>> load(const T* p) const {
    return load_pair_tail(p, count);
  }
  template <typename T>
  void store(T* p, const Pair<acc_t<T>>& v) const {
    store_pair_tail(p, v, count);
  }
  template <typename T>
  void store_result(T* p, const Pair<acc_t<T>>& v) const {
    store_pair_tail(p, v, count);
  }
};

// Calls visit(first element, Step or Tail) until the whole row is done.
template <typename Acc, typename Step = Whole, typename Visit>
inline void for_each_step(int64_t dim, const Visit& visit) {
  int64_t j = 0;
  for (; j + Pair<Acc>::size() <= dim; j += Pair<Acc>::size()) visit(j, Step{});
  if (j < dim) visit(j, Tail{dim - j});
}

template <typename Acc>
inline Pair<Acc> operator+(const Pair<Acc>& a, const Pair<Acc>& b) {
  return {a.lo + b.lo, a.hi + b.hi};
}

template <typename Acc>
inline Pair<Acc> operator-(const Pair<Acc>& a, const Pair<Acc>& b) {
  return {a.lo - b.lo, a.hi - b.hi};
}

template <typename Acc>
inline Pair<Acc> operator*(const Pair<Acc>& a, const Pair<Acc>& b) {
  return {a.lo * b.lo, a.hi * b.hi};
}

template <typename Acc>
inline Pair<Acc> fused(const Pair<Acc>& a, const Pair<Acc>& b, const Pair<Acc>& c) {
  return {at::vec::fmadd(a.lo, b.lo, c.lo), at::vec::fmadd(a.hi, b.hi, c.hi)};
}

template <typename Acc>
inline Pair<Acc> splat(Acc value) {
  return {Vectorized<Acc>(value), Vectorized<Acc>(value)};
}

// The sum of an array, in one fixed order and in few roundings. Overwrites it.
template <typename T, int kCount>
inline T sum_tree(T (&values)[kCount]) {
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

template <typename Acc>
inline Acc sum_of(const Pair<Acc>& v) {
  Acc elements[Pair<Acc>::size()];
  store_pair(elements, v);
  return sum_tree(elements);
}

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

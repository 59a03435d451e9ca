// Steps along the channels of a row: loads, stores and arithmetic on a Pair of vectors, and on what
// is left at a row's end. For `*_cpu_kernel.cpp` files only, which compile it once a capability.
#pragma once

#include <cstring>

#include "common/cpu_rows.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

// How many channels a step of `for_each_step` takes: a whole Pair, or the last ones of a row.
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

// Whole, whose results go past the cache: for those larger than it. An ordinary store first reads
// the line that it is about to overwrite, a third of a copy's traffic.
struct Streaming : Whole {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  template <typename T>
  void store_result(T* p, const Pair<acc_t<T>>& v) const {
    if constexpr (std::is_same_v<T, acc_t<T>>) {
      stream(p, v.lo);
      stream(p + Vectorized<T>::size(), v.hi);
    } else {
      stream(p, at::vec::convert_from_float<T>(v.lo, v.hi));
    }
  }

  template <typename T>
  static void stream(T* p, const Vectorized<T>& v) {
#if defined(CPU_CAPABILITY_AVX512)
    __m512i bits;
    std::memcpy(&bits, &v, sizeof(bits));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits);
#else
    __m256i bits;
    std::memcpy(&bits, &v, sizeof(bits));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits);
#endif
  }
#endif
};

// Other threads may read what was streamed.
inline void finish_streaming() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

// Calls visit(first channel, Step or Tail) until all channels are done.
template <typename Acc, typename Step = Whole, typename Visit>
inline void for_each_step(int64_t channels, const Visit& visit) {
  int64_t c = 0;
  for (; c + Pair<Acc>::size() <= channels; c += Pair<Acc>::size()) visit(c, Step{});
  if (c < channels) visit(c, Tail{channels - c});
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

template <typename Acc>
inline Vectorized<Acc> keep_where_positive(const Vectorized<Acc>& v, const Vectorized<Acc>& z) {
  const Vectorized<Acc> zero(Acc(0));
  return Vectorized<Acc>::blendv(v, zero, z <= zero);
}

// v where z > 0 or z is NaN, as torch's backward of ReLU has it; 0 elsewhere.
template <typename Acc>
inline Pair<Acc> keep_where_positive(const Pair<Acc>& v, const Pair<Acc>& z) {
  return {keep_where_positive(v.lo, z.lo), keep_where_positive(v.hi, z.hi)};
}

// NaN stays NaN.
template <typename Acc>
inline Pair<Acc> relu_of(const Pair<Acc>& v) {
  const Vectorized<Acc> zero(Acc(0));
  return {at::vec::maximum(v.lo, zero), at::vec::maximum(v.hi, zero)};
}

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

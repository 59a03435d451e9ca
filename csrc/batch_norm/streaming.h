// Steps along a row whose results go past the cache. For `*_cpu_kernel.cpp` files only, which are
// compiled once per capability.
#pragma once

#include <cstring>

#include "common/cpu_pair.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

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

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

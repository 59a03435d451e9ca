// Vectors of 32-bit and 64-bit integers with the few operations that rounding and Philox need, for
// AVX-512 and AVX2: at::vec has no unsigned ones. Floats are at::vec's.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own AVX-512 intrinsics leave the lanes that they will not read uninitialised.
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace clipfast::CPU_CAPABILITY {
namespace {

using Floats = at::vec::Vectorized<float>;

#if defined(CPU_CAPABILITY_AVX512)

#define CLIPFAST_HAS_LANES 1

constexpr int kTowardsZero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

// 16 lanes of 32 bits.
struct Words {
  __m512i lanes;

  static constexpr int size() { return 16; }
  static Words all(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  // 16 numbers of 16 bits, without and with sign.
  static Words load(const uint16_t* p) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Words load(const int16_t* p) {
    return {_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  uint32_t largest() const { return _mm512_reduce_max_epu32(lanes); }
  uint32_t smallest() const { return _mm512_reduce_min_epu32(lanes); }
};

inline Words bits_of(const Floats& x) { return {_mm512_castps_si512(x)}; }
inline Floats floats_of(const Words& x) { return _mm512_castsi512_ps(x.lanes); }
inline Words operator+(const Words& a, const Words& b) {
  return {_mm512_add_epi32(a.lanes, b.lanes)};
}
inline Words operator&(const Words& a, const Words& b) {
  return {_mm512_and_si512(a.lanes, b.lanes)};
}
inline Words shift_left_16(const Words& a) { return {_mm512_slli_epi32(a.lanes, 16)}; }
inline Words larger(const Words& a, const Words& b) { return {_mm512_max_epu32(a.lanes, b.lanes)}; }
inline Words smaller(const Words& a, const Words& b) {
  return {_mm512_min_epu32(a.lanes, b.lanes)};
}
inline bool any_above(const Words& a, uint32_t bound) {
  return _mm512_cmpgt_epu32_mask(a.lanes, Words::all(bound).lanes) != 0;
}

inline Floats load_floats(const float* p) { return Floats::loadu(p); }
inline Floats load_floats(const c10::Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// 32 numbers: bits 0 to 15 of a, then of b.
inline void store_low_halves(const Words& a, const Words& b, uint16_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.lanes));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16), _mm512_cvtepi32_epi16(b.lanes));
}
// Bits 16 to 31 of a, then of b.
inline void store_high_halves(const Words& a, const Words& b, uint16_t* p) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                    23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                    45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  _mm512_storeu_si512(p, _mm512_permutex2var_epi16(a.lanes, _mm512_load_si512(kOdd), b.lanes));
}

// element.h's round_to_half of zeros and of what is normal in fp16 and stays below 2^16. The
// conversion cuts 13 bits off.
inline void store_rounded_normal_half(const Words& bits, const Words& noise, uint16_t* p) {
  const __m512i carried = _mm512_add_epi32(bits.lanes, _mm512_srli_epi32(noise.lanes, 3));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(_mm512_castsi512_ps(carried), kTowardsZero));
}

// element.h's round_to_half of finite numbers up to 65504, with the sign of `bits` where kSigned.
// The conversion cuts a normal number's 13 bits off. To what will be subnormal in fp16, the noise
// is added in floating point; both that sum and the conversion round towards zero, and the grid of
// the sum holds the grid of fp16, so that they are one rounding.
template <bool kSigned>
inline void store_rounded_half(const Words& magnitude, const Words& bits, const Words& noise,
                               uint16_t* p) {
  const __mmask16 subnormal =
      _mm512_cmplt_epi32_mask(magnitude.lanes, _mm512_set1_epi32(0x38800000));
  const __m512i carry = _mm512_maskz_srli_epi32(_knot_mask16(subnormal), noise.lanes, 3);
  const __m512 normal = _mm512_castsi512_ps(_mm512_add_epi32(magnitude.lanes, carry));
  __m512 rounded = _mm512_mask3_fmadd_round_ps(
      _mm512_cvtepi32_ps(noise.lanes), _mm512_set1_ps(0x1p-40f), normal, subnormal, kTowardsZero);
  if constexpr (kSigned) {
    constexpr int kFirstOrSecondWithoutThird = 0xF4;
    rounded = _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(rounded), bits.lanes,
                                  _mm512_set1_epi32(0x7FFFFFFF), kFirstOrSecondWithoutThird));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(rounded, kTowardsZero));
}

// 8 lanes of 64 bits.
struct Longs {
  __m512i lanes;

  static constexpr int size() { return 8; }
  // Independent chains that hide the latency of Philox's rounds and fit the registers.
  static constexpr int chains() { return 4; }
  static Longs all(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
  static Longs load(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(uint16_t* p) const { _mm512_storeu_si512(p, lanes); }
};

inline Longs operator+(const Longs& a, const Longs& b) {
  return {_mm512_add_epi64(a.lanes, b.lanes)};
}
// Products of the low halves.
inline Longs multiply_low(const Longs& a, const Longs& b) {
  return {_mm512_mul_epu32(a.lanes, b.lanes)};
}
inline Longs high_half(const Longs& a) { return {_mm512_srli_epi64(a.lanes, 32)}; }
inline Longs exclusive_or(const Longs& a, const Longs& b) {
  return {_mm512_xor_si512(a.lanes, b.lanes)};
}
inline Longs exclusive_or(const Longs& a, const Longs& b, const Longs& c) {
  return {_mm512_ternarylogic_epi64(a.lanes, b.lanes, c.lanes, 0x96)};
}
// Low halves of a and b, those of b above.
inline Longs join_low(const Longs& a, const Longs& b) {
  return {_mm512_mask_shuffle_epi32(a.lanes, 0xAAAA, b.lanes, _MM_PERM_CCAA)};
}
inline Longs interleave_even(const Longs& a, const Longs& b) {
  return {_mm512_unpacklo_epi64(a.lanes, b.lanes)};
}
inline Longs interleave_odd(const Longs& a, const Longs& b) {
  return {_mm512_unpackhi_epi64(a.lanes, b.lanes)};
}

#elif defined(CPU_CAPABILITY_AVX2)

#define CLIPFAST_HAS_LANES 1

constexpr int kTowardsZero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

// 8 lanes of 32 bits.
struct Words {
  __m256i lanes;

  static constexpr int size() { return 8; }
  static Words all(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
  static Words load(const uint16_t* p) {
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Words load(const int16_t* p) {
    return {_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  uint32_t largest() const {
    alignas(32) uint32_t words[size()];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), lanes);
    return *std::max_element(words, words + size());
  }
  uint32_t smallest() const {
    alignas(32) uint32_t words[size()];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), lanes);
    return *std::min_element(words, words + size());
  }
};

inline Words bits_of(const Floats& x) { return {_mm256_castps_si256(x)}; }
inline Floats floats_of(const Words& x) { return _mm256_castsi256_ps(x.lanes); }
inline Words operator+(const Words& a, const Words& b) {
  return {_mm256_add_epi32(a.lanes, b.lanes)};
}
inline Words operator&(const Words& a, const Words& b) {
  return {_mm256_and_si256(a.lanes, b.lanes)};
}
inline Words shift_left_16(const Words& a) { return {_mm256_slli_epi32(a.lanes, 16)}; }
inline Words larger(const Words& a, const Words& b) { return {_mm256_max_epu32(a.lanes, b.lanes)}; }
inline Words smaller(const Words& a, const Words& b) {
  return {_mm256_min_epu32(a.lanes, b.lanes)};
}
// Both below 2^31: AVX2 compares with sign.
inline bool any_above(const Words& a, uint32_t bound) {
  return _mm256_movemask_epi8(_mm256_cmpgt_epi32(a.lanes, Words::all(bound).lanes)) != 0;
}

inline Floats load_floats(const float* p) { return Floats::loadu(p); }
inline Floats load_floats(const c10::Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// 16 numbers: bits 16 to 31 of a, then of b.
inline void store_high_halves(const Words& a, const Words& b, uint16_t* p) {
  const __m256i packed =
      _mm256_packus_epi32(_mm256_srli_epi32(a.lanes, 16), _mm256_srli_epi32(b.lanes, 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
inline void store_low_halves(const Words& a, const Words& b, uint16_t* p) {
  store_high_halves(shift_left_16(a), shift_left_16(b), p);
}

// As for AVX-512.
inline void store_rounded_normal_half(const Words& bits, const Words& noise, uint16_t* p) {
  const __m256i carried = _mm256_add_epi32(bits.lanes, _mm256_srli_epi32(noise.lanes, 3));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(_mm256_castsi256_ps(carried), kTowardsZero));
}

// As for AVX-512, whose sum with a rounding of its own AVX2 lacks: in the integers of element.h.
template <bool kSigned>
inline void store_rounded_half(const Words& magnitude, const Words& bits, const Words& noise,
                               uint16_t* p) {
  const __m256i carried = _mm256_add_epi32(magnitude.lanes, _mm256_srli_epi32(noise.lanes, 3));
  const __m256i normal =
      _mm256_sub_epi32(_mm256_srli_epi32(carried, 13), _mm256_set1_epi32(112 << 10));
  const __m256i units =
      _mm256_cvttps_epi32(_mm256_mul_ps(floats_of(magnitude), _mm256_set1_ps(0x1p40f)));
  const __m256i subnormal = _mm256_srli_epi32(_mm256_add_epi32(units, noise.lanes), 16);
  const __m256i is_subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x38800000), magnitude.lanes);
  __m256i half = _mm256_blendv_epi8(normal, subnormal, is_subnormal);
  if constexpr (kSigned) {
    const __m256i sign =
        _mm256_and_si256(_mm256_srli_epi32(bits.lanes, 16), _mm256_set1_epi32(0x8000));
    half = _mm256_or_si256(half, sign);
  }
  const __m128i low = _mm256_castsi256_si128(half), high = _mm256_extracti128_si256(half, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
}

// 4 lanes of 64 bits.
struct Longs {
  __m256i lanes;

  static constexpr int size() { return 4; }
  static constexpr int chains() { return 2; }
  static Longs all(uint64_t x) { return {_mm256_set1_epi64x(static_cast<int64_t>(x))}; }
  static Longs load(const uint64_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  void store(uint16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), lanes); }
};

inline Longs operator+(const Longs& a, const Longs& b) {
  return {_mm256_add_epi64(a.lanes, b.lanes)};
}
inline Longs multiply_low(const Longs& a, const Longs& b) {
  return {_mm256_mul_epu32(a.lanes, b.lanes)};
}
inline Longs high_half(const Longs& a) { return {_mm256_srli_epi64(a.lanes, 32)}; }
inline Longs exclusive_or(const Longs& a, const Longs& b) {
  return {_mm256_xor_si256(a.lanes, b.lanes)};
}
inline Longs exclusive_or(const Longs& a, const Longs& b, const Longs& c) {
  return {_mm256_xor_si256(_mm256_xor_si256(a.lanes, b.lanes), c.lanes)};
}
inline Longs join_low(const Longs& a, const Longs& b) {
  return {_mm256_blend_epi32(a.lanes, _mm256_slli_epi64(b.lanes, 32), 0xAA)};
}
inline Longs interleave_even(const Longs& a, const Longs& b) {
  return {_mm256_unpacklo_epi64(a.lanes, b.lanes)};
}
inline Longs interleave_odd(const Longs& a, const Longs& b) {
  return {_mm256_unpackhi_epi64(a.lanes, b.lanes)};
}

#endif

#ifdef CLIPFAST_HAS_LANES

inline Floats load_floats(const c10::BFloat16* p) {
  return floats_of(shift_left_16(Words::load(reinterpret_cast<const uint16_t*>(p))));
}

#endif

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

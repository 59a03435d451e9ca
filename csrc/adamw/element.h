// What happens to one element, the same bits on CPU and CUDA: random bits, stochastic rounding, the
// formats of statistics and weights, and the update itself.
//
// Free of torch and CUDA headers. Every sum is an explicit fused multiply-add and every other
// operation a single IEEE one, so that no compiler, vector width or device can round otherwise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "adamw/constants.h"
#include "common/host_device.h"

namespace clipfast::adamw {

struct Draw {
  uint32_t word[4];
};

// Philox4x32 of kRounds rounds (Salmon et al. 2011): counter (draw, step, 0), key seed.
//   draw: index of the element among all of the optimizer's, divided by kDraw.
// The 16 bits of element kDraw * draw + 2 w + h are bits 16 h to 16 h + 15 of word w.
CLIPFAST_HOST_DEVICE Draw philox(uint64_t draw, uint32_t step, uint64_t seed) {
  uint32_t c0 = static_cast<uint32_t>(draw), c1 = static_cast<uint32_t>(draw >> 32);
  uint32_t c2 = step, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return {{c0, c1, c2, c3}};
}

// What is rounded. One draw serves all three roundings of an element, since it costs as much as the
// rest of the step: its 16 bits times an odd number, modulo 2^16. That is a permutation, so each
// rounding alone is unbiased, whatever has happened before; and the numbers are those whose pairs
// of products lie most evenly in the square (no lattice vector is shorter than 266, where 274 is
// the most that any has), so one rounding hardly says where the others go.
enum Purpose : uint32_t { kFirstMoment = 0, kSecondMoment = 1, kWeight = 2 };
constexpr uint32_t kPurposes = 3;

CLIPFAST_HOST_DEVICE uint32_t multiplier(uint32_t purpose) {
  return purpose == kFirstMoment    ? kFirstMomentMultiplier
         : purpose == kSecondMoment ? kSecondMomentMultiplier
                                    : kWeightMultiplier;
}

// The bits of a draw for one purpose.
CLIPFAST_HOST_DEVICE Draw bits_for(uint32_t purpose, const Draw& draw) {
  const uint32_t factor = multiplier(purpose);
  Draw bits;
  for (int w = 0; w < 4; ++w) {
    bits.word[w] = ((draw.word[w] & 0xFFFF0000u) * factor) | ((draw.word[w] * factor) & 0xFFFFu);
  }
  return bits;
}

// Bits of a magnitude that is infinite; those of a NaN are larger.
constexpr uint32_t kInfinity = 0x7F800000u;

CLIPFAST_HOST_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

CLIPFAST_HOST_DEVICE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// fp16 bits of x: its magnitude rounded up with the probability of the fraction that would be lost.
// Finite values beyond 65504 become 65504; infinities and NaN stay.
//   random: 16 bits.
CLIPFAST_HOST_DEVICE uint16_t round_to_half(float x, uint32_t random) {
  const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude >= kInfinity) {
    half = magnitude > kInfinity ? 0x7E00u : 0x7C00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14: normal in fp16, 13 bits are lost
    half = ((magnitude + (random >> 3)) >> 13) - (112u << 10);
    half = half > 0x7BFFu ? 0x7BFFu : half;
  } else {  // in units of 2^-40: an fp16 subnormal, whose bits are a multiple of 2^-24, and 16 more
    half = (static_cast<uint32_t>(float_of(magnitude) * 0x1p40f) + random) >> 16;
  }
  return static_cast<uint16_t>(sign | half);
}

// bf16 bits of x, likewise; finite values stay finite.
CLIPFAST_HOST_DEVICE uint16_t round_to_bfloat16(float x, uint32_t random) {
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > kInfinity) return 0x7FC0u;
  if (magnitude == kInfinity) return static_cast<uint16_t>(bits >> 16);
  const uint32_t rounded = (magnitude + random) >> 16;
  return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | (rounded > 0x7F7Fu ? 0x7F7Fu : rounded));
}

// The fp32 master x as the nearest bf16 and the 16 bits that give x back: high << 16, plus low.
struct Split {
  uint16_t high;
  int16_t low;
};

CLIPFAST_HOST_DEVICE Split split_master(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7FFFFFFFu) > kInfinity) return {0x7FC0u, 0};
  return {static_cast<uint16_t>((bits + 0x8000u) >> 16), static_cast<int16_t>(bits & 0xFFFFu)};
}

// Where high was set by hand, to zero or infinity, low belongs to another weight: a sum that is no
// number is high alone.
CLIPFAST_HOST_DEVICE float join_master(uint16_t high, int16_t low) {
  const uint32_t alone = static_cast<uint32_t>(high) << 16;
  const uint32_t joined = alone + static_cast<uint32_t>(int32_t{low});
  return float_of((joined & 0x7FFFFFFFu) > kInfinity ? alone : joined);
}

// A block's exponent e, from the bits of its largest magnitude, is kept in 8 bits. The block is
// stored times 2^(kTopExponent - e).
CLIPFAST_HOST_DEVICE int block_exponent(uint32_t largest_magnitude_bits) {
  const int e = static_cast<int>(largest_magnitude_bits >> 23) - 127;
  return e < kSmallestExponent ? kSmallestExponent : (e > kLargestExponent ? kLargestExponent : e);
}

CLIPFAST_HOST_DEVICE float encoding_scale(int exponent) {
  return float_of(static_cast<uint32_t>(127 + kTopExponent - exponent) << 23);
}

CLIPFAST_HOST_DEVICE float decoding_scale(int exponent) {
  return float_of(static_cast<uint32_t>(127 - kTopExponent + exponent) << 23);
}

// The coefficients of one step of one tensor.
struct Coefficients {
  float beta1, rest1;        // beta1, 1 - beta1
  float beta2, rest2;        // beta2, 1 - beta2
  float decay;               // 1 - lr * weight_decay
  float step_size;           // lr / (1 - beta1^t)
  float inverse_correction;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float maximum;  // bound of the weights from above, or infinity
};

struct Hyperparameters {
  double lr, beta1, beta2, eps, weight_decay, maximum;
};

// base^exponent by squaring, in products alone: the same bits on every device.
CLIPFAST_HOST_DEVICE double power(double base, uint32_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// step: t, from 1, of the update that is being made.
CLIPFAST_HOST_DEVICE Coefficients coefficients(const Hyperparameters& h, uint32_t step) {
  return {static_cast<float>(h.beta1),
          static_cast<float>(1.0 - h.beta1),
          static_cast<float>(h.beta2),
          static_cast<float>(1.0 - h.beta2),
          static_cast<float>(fma(-h.lr, h.weight_decay, 1.0)),
          static_cast<float>(h.lr / (1.0 - power(h.beta1, step))),
          static_cast<float>(1.0 / sqrt(1.0 - power(h.beta2, step))),
          static_cast<float>(h.eps),
          static_cast<float>(h.maximum)};
}

struct Moments {
  float m, v, root_v;
};

// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   v: from statistics that hold its root, the root's square.
CLIPFAST_HOST_DEVICE Moments new_moments(float g, float m, float v, const Coefficients& c) {
  Moments e;
  e.m = fmaf(c.beta1, m, c.rest1 * g);
  e.v = fmaf(c.beta2, v, c.rest2 * (g * g));
  e.root_v = sqrtf(e.v);
  return e;
}

// min(decay weight - step_size m / (sqrt(v) inverse_correction + eps), maximum)
CLIPFAST_HOST_DEVICE float new_weight(float weight, float m, float root_v, const Coefficients& c) {
  const float direction = m / fmaf(root_v, c.inverse_correction, c.eps);
  const float moved = fmaf(-c.step_size, direction, c.decay * weight);
  return moved > c.maximum ? c.maximum : moved;  // keeps a NaN
}

}  // namespace clipfast::adamw

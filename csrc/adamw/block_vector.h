// The stages of one block with vectors of AVX-512 or AVX2: the same bits as block_scalar.h, which
// takes over the rare block that holds an infinity, a NaN or what rounding might overflow.
#pragma once

#include "../cpu_rows.h"
#include "block_scalar.h"
#include "lanes.h"

#ifdef CLIPFAST_HAS_LANES

namespace clipfast::CPU_CAPABILITY {
namespace {
namespace vectors {

using adamw::kBlock;
using adamw::kDraw;

constexpr int kStep = Words::size();
constexpr uint32_t kInfinity = 0x7F800000u;
constexpr uint32_t kLargestHalf = 0x477FE000u;  // 65504
constexpr uint32_t kLargestBfloat16 = 0x7F7F0000u;

inline Words magnitude_of(const Floats& x) { return bits_of(x) & Words::all(0x7FFFFFFFu); }

// Philox with one draw a 64-bit lane. A multiplication reads the low half of its lane alone, so
// the high halves may hold anything, and a product is its own low half. What is the same for all
// lanes, which is half of the first two rounds, is left to scalar arithmetic.
class Draws {
 public:
  explicit Draws(const Stream& stream) : begin_(stream.begin), end_(stream.end) {
    for (int i = 0; i < kRounds; ++i) {
      key0_[i] = low(stream.seed + i * uint64_t{0x9E3779B9u});
      key1_[i] = low((stream.seed >> 32) + i * uint64_t{0xBB67AE85u});
    }
    step_product_ = kMultiplier1 * stream.step;
    round1_ = low(step_product_) ^ key0_[1];
    // Lanes 0, 2, 4, ... take the first half of the draws, so that interleaving 64-bit halves
    // leaves the draws in order.
    for (int i = 0; i < kLanes; ++i) order_[i] = i % 2 * (kLanes / 2) + i / 2;
  }

  void set_block(uint64_t first, uint16_t (*random)[kBlock]) {
    first_ = first;
    random_ = random;
    product_ = kMultiplier0 * ((step_product_ >> 32) ^ (first >> 32) ^ key0_[0]);
    round1_other_ = (product_ >> 32) ^ key1_[1];
  }

  void all() const {
    if (begin_ == end_) return;
    for (int first = 0; first < kBlock / kDraw; first += kChains * kLanes) chains(first);
    scalar::permute(begin_, end_, random_);
  }

 private:
  static constexpr int kLanes = Longs::size(), kChains = Longs::chains(), kRounds = 10;
  static constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;

  static uint64_t low(uint64_t x) { return x & 0xFFFFFFFFu; }

  // kChains vectors of draws, `first` of the block and the ones after it.
  void chains(int first) const {
    const Longs multiplier0 = Longs::all(kMultiplier0), multiplier1 = Longs::all(kMultiplier1);
    const Longs round0 = Longs::all(key1_[0]), round1 = Longs::all(round1_);
    const Longs round1_other = Longs::all(round1_other_), order = Longs::load(order_);
    Longs c0[kChains], c1[kChains], c2[kChains], c3[kChains];
    for (int i = 0; i < kChains; ++i) {
      const Longs draws = Longs::all(first_ + static_cast<uint64_t>(first + i * kLanes)) + order;
      const Longs product = multiply_low(draws, multiplier0);
      c1[i] = multiply_low(exclusive_or(high_half(product), round0), multiplier1);
      c0[i] = exclusive_or(high_half(c1[i]), round1);
      c2[i] = exclusive_or(product, round1_other);
      c3[i] = Longs::all(product_);
    }
    for (int round = 2; round < kRounds; ++round) {
      const Longs key0 = Longs::all(key0_[round]), key1 = Longs::all(key1_[round]);
      for (int i = 0; i < kChains; ++i) {
        const Longs p0 = multiply_low(c0[i], multiplier0), p1 = multiply_low(c2[i], multiplier1);
        c0[i] = exclusive_or(high_half(p1), c1[i], key0);
        c2[i] = exclusive_or(high_half(p0), c3[i], key1);
        c1[i] = p1;
        c3[i] = p0;
      }
    }
    for (int i = 0; i < kChains; ++i) {
      uint16_t* out = random_[0] + (first + i * kLanes) * kDraw;
      const Longs words01 = join_low(c0[i], c1[i]), words23 = join_low(c2[i], c3[i]);
      interleave_even(words01, words23).store(out);
      interleave_odd(words01, words23).store(out + kLanes / 2 * kDraw);
    }
  }

  uint32_t begin_, end_;
  uint16_t (*random_)[kBlock] = nullptr;
  uint64_t first_ = 0, step_product_ = 0, product_ = 0, round1_ = 0, round1_other_ = 0;
  uint64_t key0_[kRounds], key1_[kRounds];
  alignas(64) uint64_t order_[kLanes];
};

// Widens 16-bit types as it loads: division and root leave the time for it.
template <typename Statistics, typename Grad, typename Weight>
inline Largest update(const adamw::Coefficients& c, const Inputs<Statistics, Grad, Weight>& in,
                      const Results& out) {
  const Floats beta1(c.beta1), rest1(c.rest1), beta2(c.beta2), rest2(c.rest2), decay(c.decay);
  const Floats inverse_correction(c.inverse_correction), eps(c.eps), maximum(c.maximum);
  const Floats minus_step_size(-c.step_size), grad_factor(in.grad_factor);
  const Floats m_scale(in.m_scale), v_scale(in.v_scale);
  Words largest_m = Words::all(0), largest_root = Words::all(0), largest_weight = Words::all(0);
  const auto step = [&](int i, const Floats& grad, const Floats& weight, Floats m, Floats v) {
    if constexpr (std::is_same_v<Statistics, c10::Half>) {
      m = m * m_scale;
      v = v * v_scale;
    }
    if constexpr (kHoldsRoot<Statistics>) v = v * v;
    const Floats g = grad * grad_factor;
    m = at::vec::fmadd(beta1, m, rest1 * g);
    v = at::vec::fmadd(beta2, v, rest2 * (g * g));
    const Floats root = v.sqrt();
    const Floats direction = m / at::vec::fmadd(root, inverse_correction, eps);
    // clamp_max keeps a NaN.
    const Floats new_weight =
        at::vec::clamp_max(at::vec::fmadd(minus_step_size, direction, decay * weight), maximum);
    new_weight.store(out.weight + i);
    m.store(out.m + i);
    (kHoldsRoot<Statistics> ? root : v).store(out.v + i);
    largest_m = larger(largest_m, magnitude_of(m));
    largest_root = larger(largest_root, magnitude_of(root));
    largest_weight = larger(largest_weight, magnitude_of(new_weight));
  };
  for (int i = 0; i < kBlock; i += 2 * kStep) {
    const auto grad = load_pair(in.grad + i), weight = load_pair(in.weight + i);
    const auto m = load_pair(in.m + i), v = load_pair(in.v + i);
    step(i, grad.lo, weight.lo, m.lo, v.lo);
    step(i + kStep, grad.hi, weight.hi, m.hi, v.hi);
  }
  return {largest_m.largest(), largest_root.largest(), largest_weight.largest()};
}

// largest: bits of the largest magnitude of x * scale, or of any number that is not below it.
// kSigned: false where no x has a sign.
template <bool kSigned>
inline void round_to_half(const float* x, float scale, uint32_t largest, const uint16_t* random,
                          uint16_t* out) {
  if (largest > kLargestHalf) {
    return scalar::round_to_half<kSigned>(x, scale, largest, random, out);
  }
  const Floats scales(scale);
  for (int i = 0; i < kBlock; i += kStep) {
    const Floats scaled = Floats::loadu(x + i) * scales;
    const Words magnitude = kSigned ? magnitude_of(scaled) : bits_of(scaled);
    store_rounded_half<kSigned>(magnitude, bits_of(scaled), Words::load(random + i), out + i);
  }
}

inline void round_to_bfloat16(const float* x, uint32_t largest, const uint16_t* random,
                              uint16_t* out) {
  if (largest > kLargestBfloat16) {
    return scalar::round_to_bfloat16(x, largest, random, out);
  }
  for (int i = 0; i < kBlock; i += 2 * kStep) {
    store_high_halves(bits_of(Floats::loadu(x + i)) + Words::load(random + i),
                      bits_of(Floats::loadu(x + i + kStep)) + Words::load(random + i + kStep),
                      out + i);
  }
}

inline void split_masters(const float* x, uint32_t largest, uint16_t* high, int16_t* low) {
  if (largest > kInfinity) return scalar::split_masters(x, largest, high, low);
  const Words half = Words::all(0x8000u);
  for (int i = 0; i < kBlock; i += 2 * kStep) {
    const Words a = bits_of(Floats::loadu(x + i)), b = bits_of(Floats::loadu(x + i + kStep));
    store_high_halves(a + half, b + half, high + i);
    store_low_halves(a, b, reinterpret_cast<uint16_t*>(low) + i);
  }
}

inline void join_masters(const uint16_t* high, const int16_t* low, float* out) {
  for (int i = 0; i < kBlock; i += kStep) {
    floats_of(shift_left_16(Words::load(high + i)) + Words::load(low + i)).store(out + i);
  }
}

}  // namespace vectors
}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

#endif

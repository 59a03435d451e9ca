// element.h's philox with one draw a 64-bit lane of AVX-512 or AVX2.
#pragma once

#include "adamw/block_scalar.h"
#include "lanes.h"

#ifdef CLIPFAST_HAS_LANES

namespace clipfast::CPU_CAPABILITY {
namespace {
namespace vectors {

using adamw::kBlock;
using adamw::kDraw;

// A multiplication reads the low half of its lane alone, so the high halves may hold anything, and
// a product is its own low half. What is the same for all lanes, which is half of the first two
// rounds, is left to scalar arithmetic.
class Draws {
 public:
  explicit Draws(const Stream& stream) : begin_(stream.begin), end_(stream.end) {
    for (int i = 0; i < kRounds; ++i) {
      key0_[i] = low(stream.seed + i * uint64_t{adamw::kPhiloxKeyStep0});
      key1_[i] = low((stream.seed >> 32) + i * uint64_t{adamw::kPhiloxKeyStep1});
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
  static constexpr int kLanes = Longs::size(), kChains = Longs::chains();
  static constexpr int kRounds = adamw::kRounds;
  static constexpr uint64_t kMultiplier0 = adamw::kPhiloxMultiplier0;
  static constexpr uint64_t kMultiplier1 = adamw::kPhiloxMultiplier1;

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

}  // namespace vectors
}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

#endif

// The stages of one block, element by element: what every machine can run, and what the vector
// forms leave to it. For adamw_cpu_kernel.cpp only, which is compiled once a CPU capability.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "element.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

// What names the random numbers of one tensor's step, and the purposes [begin, end) that need them.
struct Stream {
  uint64_t seed;
  uint32_t step;
  uint32_t begin, end;
};

// The block's largest magnitudes, as bits: larger magnitudes have larger bits, and NaN the largest.
struct Largest {
  uint32_t m = 0, root_v = 0, weight = 0;
};

// What a step reads of a block.
template <typename Statistics, typename Grad, typename Weight>
struct Inputs {
  const Statistics* m;
  const Statistics* v;  // the second moment's root but in fp32
  const Grad* grad;
  const Weight* weight;
  float m_scale, v_scale;  // of fp16 statistics; else 1
  float grad_factor;
};

template <typename Statistics>
constexpr bool kHoldsRoot = !std::is_same_v<Statistics, float>;

// Where a step leaves a block, in fp32; may be what it reads. v: its root where statistics hold
// that.
struct Results {
  float *m, *v, *weight;
};

namespace scalar {

using adamw::kBlock;
using adamw::kDraw;
using adamw::kPurposes;

// The random numbers of the purposes [begin, end) from those drawn, which are the first purpose's.
inline void permute(uint32_t begin, uint32_t end, uint16_t (*random)[kBlock]) {
  for (uint32_t purpose = std::max(begin, 1u); purpose < end; ++purpose) {
    const auto factor = static_cast<uint16_t>(adamw::multiplier(purpose));
    for (int i = 0; i < kBlock; ++i) {
      random[purpose][i] = static_cast<uint16_t>(random[0][i] * factor);
    }
  }
}

// The random numbers of one block after another.
class Draws {
 public:
  explicit Draws(const Stream& stream) : stream_(stream) {}

  // first: of the block's first element, a multiple of kBlock / kDraw.
  // random: [kPurposes, kBlock] in the order of the elements.
  void set_block(uint64_t first, uint16_t (*random)[kBlock]) {
    first_ = first;
    random_ = random;
  }

  void all() const {
    if (stream_.begin == stream_.end) return;
    for (int i = 0; i < kBlock; i += kDraw) {
      const auto draw =
          adamw::philox(first_ + static_cast<uint64_t>(i / kDraw), stream_.step, stream_.seed);
      for (int j = 0; j < kDraw; ++j) {
        random_[0][i + j] = static_cast<uint16_t>(draw.word[j / 2] >> (16 * (j % 2)));
      }
    }
    permute(stream_.begin, stream_.end, random_);
  }

 private:
  Stream stream_;
  uint64_t first_ = 0;
  uint16_t (*random_)[kBlock] = nullptr;
};

// The step of element.h.
template <typename Statistics, typename Grad, typename Weight>
inline Largest update(const adamw::Coefficients& c, const Inputs<Statistics, Grad, Weight>& in,
                      const Results& out) {
  constexpr uint32_t kMagnitude = 0x7FFFFFFFu;
  Largest largest;
  for (int i = 0; i < kBlock; ++i) {
    const float m = static_cast<float>(in.m[i]) * in.m_scale;
    const float v = static_cast<float>(in.v[i]) * in.v_scale;
    const auto e = adamw::update(static_cast<float>(in.weight[i]),
                                 static_cast<float>(in.grad[i]) * in.grad_factor, m,
                                 kHoldsRoot<Statistics> ? v * v : v, c);
    out.weight[i] = e.weight;
    out.m[i] = e.m;
    out.v[i] = kHoldsRoot<Statistics> ? e.root_v : e.v;
    largest.m = std::max(largest.m, adamw::bits_of(e.m) & kMagnitude);
    largest.root_v = std::max(largest.root_v, adamw::bits_of(e.root_v) & kMagnitude);
    largest.weight = std::max(largest.weight, adamw::bits_of(e.weight) & kMagnitude);
  }
  return largest;
}

// largest: what only the vector forms ask for, as kSigned is.
template <bool kSigned>
inline void round_to_half(const float* x, float scale, uint32_t largest, const uint16_t* random,
                          uint16_t* out) {
  for (int i = 0; i < kBlock; ++i) out[i] = adamw::round_to_half(x[i] * scale, random[i]);
}

inline void round_to_bfloat16(const float* x, uint32_t largest, const uint16_t* random,
                              uint16_t* out) {
  for (int i = 0; i < kBlock; ++i) out[i] = adamw::round_to_bfloat16(x[i], random[i]);
}

inline void split_masters(const float* x, uint32_t largest, uint16_t* high, int16_t* low) {
  for (int i = 0; i < kBlock; ++i) {
    const auto split = adamw::split_master(x[i]);
    high[i] = split.high;
    low[i] = split.low;
  }
}

inline void join_masters(const uint16_t* high, const int16_t* low, float* out) {
  for (int i = 0; i < kBlock; ++i) out[i] = adamw::join_master(high[i], low[i]);
}

}  // namespace scalar
}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

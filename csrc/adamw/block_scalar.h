// The stages of one block, element by element: what every machine can run, and what the vector
// forms leave to it. For adamw_cpu_kernel.cpp only, which is compiled once per CPU capability.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/scalar_type.h"
#include "element.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

// What names the random numbers of one tensor's step, and the purposes [begin, end) that need them.
struct Stream {
  uint64_t seed;
  uint32_t step;
  uint32_t begin, end;
};

// Magnitudes as bits: larger ones have larger bits, and NaN the largest.
struct Range {
  uint32_t largest = 0;
  uint32_t smallest = ~0u;  // of those that are not zero, less one; for the vector forms' fp16
};

struct Ranges {
  Range m, root_v;
};

// What new moments come from.
template <typename Statistics, typename Grad>
struct Inputs {
  const Statistics* m;
  const Statistics* v;  // the second moment's root but in fp32
  const Grad* grad;
  float m_scale, v_scale;  // of fp16 statistics; else 1
  float grad_factor;
};

template <typename Statistics>
constexpr bool kHoldsRoot = !std::is_same_v<Statistics, float>;

// Where they go in fp32. m and v may be what was read; v only where statistics hold it.
struct Moments {
  float *m, *v, *root_v;
};

// The weights of a block, and where they go.
struct Weights {
  void* from;          // fp32, or half precision, which takes the new weights too
  DType type;          // of `from`
  float* to;           // in fp32; may be `from`
  int16_t* remainder;  // of `from`, or nullptr
  bool keeps_fp32;     // `to` is rounded to nothing, or to the nearest
};

// Where the new moments end: rounded to half precision, or where they are if `type` is fp32.
struct StoredMoments {
  DType type;
  uint16_t *m, *v;
  int m_exponent, v_exponent;  // of fp16
};

// The new weights' largest magnitude, as bits (not kept for those that stay fp32), and what has
// been rounded on the way.
struct Finished {
  uint32_t largest_weight = 0;
  bool moments = false, weights = false;
};

namespace scalar {

using adamw::kBlock;
using adamw::kDraw;

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
  // random: [adamw::kPurposes, kBlock] in the order of the elements.
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

template <typename Statistics, typename Grad>
inline Ranges new_moments(const adamw::Coefficients& c, const Inputs<Statistics, Grad>& in,
                          const Moments& out) {
  Ranges ranges;
  const auto note = [](Range& range, float x) {
    range.largest = std::max(range.largest, adamw::bits_of(x) & 0x7FFFFFFFu);
  };
  for (int i = 0; i < kBlock; ++i) {
    const float m = static_cast<float>(in.m[i]) * in.m_scale;
    const float v = static_cast<float>(in.v[i]) * in.v_scale;
    const auto e = adamw::new_moments(static_cast<float>(in.grad[i]) * in.grad_factor, m,
                                      kHoldsRoot<Statistics> ? v * v : v, c);
    out.m[i] = e.m;
    if (!kHoldsRoot<Statistics>) out.v[i] = e.v;
    out.root_v[i] = e.root_v;
    note(ranges.m, e.m);
    note(ranges.root_v, e.root_v);
  }
  return ranges;
}

inline void join_masters(const uint16_t* high, const int16_t* low, float* out) {
  for (int i = 0; i < kBlock; ++i) out[i] = adamw::join_master(high[i], low[i]);
}

// Rounds nothing on the way: the vector forms do, and need more to know.
inline Finished new_weights(const adamw::Coefficients& c, const Moments& moments,
                            const Weights& weights, const StoredMoments&, const Ranges&,
                            const uint16_t (*)[kBlock]) {
  Finished finished;
  const auto move = [&](const auto* from) {
    for (int i = 0; i < kBlock; ++i) {
      const float weight =
          adamw::new_weight(static_cast<float>(from[i]), moments.m[i], moments.root_v[i], c);
      weights.to[i] = weight;
      const uint32_t magnitude = adamw::bits_of(weight) & 0x7FFFFFFFu;
      finished.largest_weight = std::max(finished.largest_weight, magnitude);
    }
  };
  if (weights.remainder != nullptr) {
    join_masters(static_cast<const uint16_t*>(weights.from), weights.remainder, weights.to);
    move(weights.to);
  } else if (weights.type == DType::kBFloat16) {
    move(static_cast<const c10::BFloat16*>(weights.from));
  } else if (weights.type == DType::kFloat16) {
    move(static_cast<const c10::Half*>(weights.from));
  } else {
    move(static_cast<const float*>(weights.from));
  }
  return finished;
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

inline void split_masters(const float* x, uint16_t* high, int16_t* low) {
  for (int i = 0; i < kBlock; ++i) {
    const auto split = adamw::split_master(x[i]);
    high[i] = split.high;
    low[i] = split.low;
  }
}

}  // namespace scalar
}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

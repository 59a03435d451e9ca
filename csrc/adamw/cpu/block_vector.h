// The stages of one block with vectors of AVX-512 or AVX2: the same bits as block_scalar.h and
// element.h, which take over the rare numbers that are infinite, NaN, or might overflow.
//
// Two passes, since a block's scales are known once its largest moments are. The first waits for
// roots. The second waits for quotients, and rounds meanwhile what needs no special cases; fp16
// with subnormal codes and weights without a fast form of their own are rounded after it.
#pragma once

#include "philox_vector.h"

#ifdef CLIPFAST_HAS_LANES

namespace clipfast::CPU_CAPABILITY {
namespace {
namespace vectors {

using adamw::kInfinity;

constexpr int kStep = Words::size();
constexpr uint32_t kLargestHalf = 0x477FE000u;  // 65504
constexpr uint32_t kLargestBfloat16 = 0x7F7F0000u;

inline Words magnitude_of(const Floats& x) { return bits_of(x) & Words::all(0x7FFFFFFFu); }

// Of numbers as they pass.
template <bool kKeepsSmallest>
struct RunningRange {
  Words largest = Words::all(0), smallest = Words::all(~0u);

  void note(const Words& magnitude) {
    largest = larger(largest, magnitude);
    if constexpr (kKeepsSmallest) smallest = smaller(smallest, magnitude + Words::all(~0u));
  }
  Range range() const { return {largest.largest(), kKeepsSmallest ? smallest.smallest() : ~0u}; }
};

template <typename Statistics, typename Grad>
inline Ranges new_moments(const adamw::Coefficients& c, const Inputs<Statistics, Grad>& in,
                          const Moments& out) {
  constexpr bool kIsHalf = std::is_same_v<Statistics, c10::Half>;
  const Floats beta1(c.beta1), rest1(c.rest1), beta2(c.beta2), rest2(c.rest2);
  const Floats m_scale(in.m_scale), v_scale(in.v_scale), grad_factor(in.grad_factor);
  RunningRange<kIsHalf> m_range, root_range;
  for (int i = 0; i < kBlock; i += kStep) {
    Floats m = load_floats(in.m + i), v = load_floats(in.v + i);
    if constexpr (kIsHalf) {
      m = m * m_scale;
      v = v * v_scale;
    }
    if constexpr (kHoldsRoot<Statistics>) v = v * v;
    const Floats g = load_floats(in.grad + i) * grad_factor;
    m = at::vec::fmadd(beta1, m, rest1 * g);
    v = at::vec::fmadd(beta2, v, rest2 * (g * g));
    const Floats root = v.sqrt();
    m.store(out.m + i);
    root.store(out.root_v + i);
    if constexpr (kHoldsRoot<Statistics>) {
      m_range.note(magnitude_of(m));
      // A sum of squares has no sign, and a NaN's makes it larger still.
      root_range.note(bits_of(root));
    } else {
      v.store(out.v + i);
    }
  }
  if constexpr (!kHoldsRoot<Statistics>) return {};
  return {m_range.range(), root_range.range()};
}

// Where weights come from, by the index of a vector's first element.

template <typename T>
struct OneNumber {
  const T* from;

  Floats operator()(int i) const { return load_floats(from + i); }
};

struct HighAndLow {
  const uint16_t* high;
  const int16_t* low;

  Floats operator()(int i) const {
    const Floats joined = floats_of(shift_left_16(Words::load(high + i)) + Words::load(low + i));
    if (!any_above(magnitude_of(joined), kInfinity)) return joined;
    float numbers[kStep];
    for (int j = 0; j < kStep; ++j) numbers[j] = adamw::join_master(high[i + j], low[i + j]);
    return Floats::loadu(numbers);
  }
};

// What the second pass rounds on the way, two vectors at a time. Of weights, kKeep says whether
// they are stored in fp32 as well, and their largest magnitude found.

enum class Keep { kNothing, kWeights, kWeightsAndLargest };

template <Keep kOfWeights>
struct NothingYet {
  static constexpr Keep kKeep = kOfWeights;

  template <typename... Vectors>
  void operator()(int, const Vectors&...) const {}
};

inline bool any_above(const Floats& a, const Floats& b, uint32_t bound) {
  return any_above(larger(magnitude_of(a), magnitude_of(b)), bound);
}

// visit(offset, number) for each of two vectors.
template <typename Visit>
inline void for_each(const Floats& a, const Floats& b, const Visit& visit) {
  float numbers[2 * kStep];
  a.store(numbers);
  b.store(numbers + kStep);
  for (int j = 0; j < 2 * kStep; ++j) visit(j, numbers[j]);
}

// kChecks: false where nothing can overflow.
template <bool kChecks>
struct ToBfloat16 {
  static constexpr Keep kKeep = Keep::kNothing;
  const uint16_t* random;
  uint16_t* out;

  void operator()(int i, const Floats& a, const Floats& b) const {
    if (kChecks && any_above(a, b, kLargestBfloat16)) {
      return for_each(
          a, b, [&](int j, float x) { out[i + j] = adamw::round_to_bfloat16(x, random[i + j]); });
    }
    store_high_halves(bits_of(a) + Words::load(random + i),
                      bits_of(b) + Words::load(random + i + kStep), out + i);
  }
};

struct ToHighAndLow {
  static constexpr Keep kKeep = Keep::kNothing;
  uint16_t* high;
  int16_t* low;

  void operator()(int i, const Floats& a, const Floats& b) const {
    if (any_above(a, b, kInfinity)) {
      return for_each(a, b, [&](int j, float x) {
        const auto split = adamw::split_master(x);
        high[i + j] = split.high;
        low[i + j] = split.low;
      });
    }
    const Words half = Words::all(0x8000u);
    store_high_halves(bits_of(a) + half, bits_of(b) + half, high + i);
    store_low_halves(bits_of(a), bits_of(b), reinterpret_cast<uint16_t*>(low) + i);
  }
};

struct MomentsToBfloat16 {
  ToBfloat16<false> to_m, to_v;

  void operator()(int i, const Floats& m_a, const Floats& m_b, const Floats& root_a,
                  const Floats& root_b) const {
    to_m(i, m_a, m_b);
    to_v(i, root_a, root_b);
  }
};

struct MomentsToHalf {
  Floats m_scale, v_scale;
  const uint16_t *m_random, *v_random;
  uint16_t *m, *v;

  void operator()(int i, const Floats& m_a, const Floats& m_b, const Floats& root_a,
                  const Floats& root_b) const {
    one(i, m_a, root_a);
    one(i + kStep, m_b, root_b);
  }
  void one(int i, const Floats& new_m, const Floats& root) const {
    store_rounded_normal_half(bits_of(new_m * m_scale), Words::load(m_random + i), m + i);
    store_rounded_normal_half(bits_of(root * v_scale), Words::load(v_random + i), v + i);
  }
};

// Whether all numbers of a block are zero or, scaled, normal in fp16: not below 2^-14.
inline bool are_normal(const Range& range, int exponent) {
  const uint32_t lowest = exponent >= -98 ? static_cast<uint32_t>(exponent + 99) << 23 : 0;
  return range.largest < kInfinity && range.smallest >= lowest - 1;
}

// Returns the weights' largest magnitude where it is kept, else 0. Takes by value what every
// turn needs: from memory it would be read again after each store, which might have changed it.
template <typename LoadWeights, typename RoundWeights, typename RoundMoments>
inline uint32_t second_pass(const adamw::Coefficients& c, const Moments moments,
                            const LoadWeights load, float* const out,
                            const RoundWeights round_weights, const RoundMoments round_moments) {
  const Floats decay(c.decay), minus_step_size(-c.step_size), maximum(c.maximum);
  const Floats inverse_correction(c.inverse_correction), eps(c.eps);
  const float *const m = moments.m, *const root_v = moments.root_v;
  Words largest = Words::all(0);
  const auto move = [&](int i) {
    const Floats root = Floats::loadu(root_v + i);
    const Floats direction = Floats::loadu(m + i) / at::vec::fmadd(root, inverse_correction, eps);
    // clamp_max keeps a NaN.
    const Floats weight =
        at::vec::clamp_max(at::vec::fmadd(minus_step_size, direction, decay * load(i)), maximum);
    if constexpr (RoundWeights::kKeep != Keep::kNothing) weight.store(out + i);
    if constexpr (RoundWeights::kKeep == Keep::kWeightsAndLargest) {
      largest = larger(largest, magnitude_of(weight));
    }
    return weight;
  };
  for (int i = 0; i < kBlock; i += 2 * kStep) {
    const int j = i + kStep;
    const Floats weight_i = move(i), weight_j = move(j);
    round_moments(i, Floats::loadu(m + i), Floats::loadu(m + j), Floats::loadu(root_v + i),
                  Floats::loadu(root_v + j));
    round_weights(i, weight_i, weight_j);
  }
  return largest.largest();
}

template <typename RoundMoments>
inline Finished move_weights(const adamw::Coefficients& c, const Moments& moments,
                             const Weights& weights, const uint16_t* random,
                             const RoundMoments& round_moments) {
  const auto pass = [&](const auto& load, const auto& round_weights) {
    return second_pass(c, moments, load, weights.to, round_weights, round_moments);
  };
  auto* param = static_cast<uint16_t*>(weights.from);
  if (weights.remainder != nullptr) {
    pass(HighAndLow{param, weights.remainder}, ToHighAndLow{param, weights.remainder});
    return {0, false, true};
  }
  if (weights.type == DType::kBFloat16) {
    const auto* from = static_cast<const c10::BFloat16*>(weights.from);
    pass(OneNumber<c10::BFloat16>{from}, ToBfloat16<true>{random, param});
    return {0, false, true};
  }
  constexpr NothingYet<Keep::kWeights> keep;
  constexpr NothingYet<Keep::kWeightsAndLargest> keep_largest;
  if (weights.type == DType::kFloat16) {
    const auto* from = static_cast<const c10::Half*>(weights.from);
    return {pass(OneNumber<c10::Half>{from}, keep_largest), false, false};
  }
  const OneNumber<float> load{static_cast<const float*>(weights.from)};
  return {weights.keeps_fp32 ? pass(load, keep) : pass(load, keep_largest), false, false};
}

// The new weights; on the way, rounds the moments and the weights where that is simple.
inline Finished new_weights(const adamw::Coefficients& c, const Moments& moments,
                            const Weights& weights, const StoredMoments& stored,
                            const Ranges& ranges, const uint16_t (*random)[kBlock]) {
  const auto* m_random = random[adamw::kFirstMoment];
  const auto* v_random = random[adamw::kSecondMoment];
  const auto with = [&](const auto& round_moments, bool rounds) {
    auto finished = move_weights(c, moments, weights, random[adamw::kWeight], round_moments);
    finished.moments = rounds;
    return finished;
  };
  const bool is_half = stored.type == DType::kFloat16;
  if (is_half && are_normal(ranges.m, stored.m_exponent) &&
      are_normal(ranges.root_v, stored.v_exponent)) {
    return with(MomentsToHalf{Floats(adamw::encoding_scale(stored.m_exponent)),
                              Floats(adamw::encoding_scale(stored.v_exponent)), m_random, v_random,
                              stored.m, stored.v},
                true);
  }
  if (stored.type == DType::kBFloat16 && ranges.m.largest <= kLargestBfloat16 &&
      ranges.root_v.largest <= kLargestBfloat16) {
    return with(MomentsToBfloat16{{m_random, stored.m}, {v_random, stored.v}}, true);
  }
  return with(NothingYet<Keep::kNothing>{}, false);
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
  const ToBfloat16<false> round{random, out};
  for (int i = 0; i < kBlock; i += 2 * kStep) {
    round(i, Floats::loadu(x + i), Floats::loadu(x + i + kStep));
  }
}

}  // namespace vectors
}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

#endif

// One AdamW step over blocks of elements; compiled once per CPU capability. A block goes through
// stages, with fp32 buffers between them that stay in the first-level cache: new moments, random
// numbers, new weights, and the rounding of what has not been rounded along with these.
#include <algorithm>
#include <cstring>

#include "adamw/adamw.h"
#include "adamw/block_scalar.h"
#include "block_vector.h"
#include "common/cpu_pair.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

using adamw::Coefficients;
using adamw::kBlock;
using adamw::kInfinity;
using adamw::StepOptions;
using adamw::TensorSlot;
using adamw::WeightForm;

#ifdef CLIPFAST_HAS_LANES
namespace stages = vectors;
#else
namespace stages = scalar;
#endif

struct alignas(64) Buffers {
  float weight[kBlock], m[kBlock], root_v[kBlock];
  uint16_t random[adamw::kPurposes][kBlock], half[kBlock];
};

// One block in memory: 256 elements of each, or nullptr where the tensor has no such thing.
struct Block {
  void* param;
  const void* grad;
  void* m;
  void* v;
  int8_t* m_exponent;  // [1]
  int8_t* v_exponent;
  void* master;
};

size_t size_of(DType type) { return type == DType::kFloat32 ? 4 : 2; }

size_t size_of_master(WeightForm form) {
  return form == WeightForm::kMaster ? 4 : (form == WeightForm::kRemainder ? 2 : 0);
}

// x of a type of 16 bits, in fp32.
void widen(const uint16_t* x, DType type, float* out) {
  const auto widen_all = [out](const auto* p) {
    for (int i = 0; i < kBlock; i += Pair<float>::size()) store_pair(out + i, load_pair(p + i));
  };
  if (type == DType::kFloat16) return widen_all(reinterpret_cast<const c10::Half*>(x));
  widen_all(reinterpret_cast<const c10::BFloat16*>(x));
}

// The nearest value of a type of 16 bits, ties to even.
void narrow(const float* x, DType type, void* out) {
  const auto narrow_all = [x](auto* p) {
    for (int i = 0; i < kBlock; i += Pair<float>::size()) store_pair(p + i, load_pair(x + i));
  };
  if (type == DType::kFloat16) return narrow_all(static_cast<c10::Half*>(out));
  narrow_all(static_cast<c10::BFloat16*>(out));
}

// The random numbers of everything that this tensor rounds stochastically.
Stream stream_of(const TensorSlot& slot, const StepOptions& options) {
  const bool rounds_statistics = options.statistics != DType::kFloat32;
  const uint32_t end = rounds_weights(slot.form) ? adamw::kPurposes : adamw::kWeight;
  const uint32_t begin = rounds_statistics ? adamw::kFirstMoment : adamw::kWeight;
  return {options.seed, static_cast<uint32_t>(*slot.step), begin, options.stochastic ? end : begin};
}

// A master whose param was set by hand since the last step takes its value: the param is otherwise
// the master's nearest one.
void follow_params(const TensorSlot& slot, const Block& block) {
  uint16_t nearest[kBlock];
  auto* master = static_cast<float*>(block.master);
  const auto* param = static_cast<const uint16_t*>(block.param);
  narrow(master, slot.param_dtype, nearest);
  if (std::memcmp(nearest, param, sizeof(nearest)) == 0) return;
  float value[kBlock];
  widen(param, slot.param_dtype, value);
  for (int i = 0; i < kBlock; ++i) {
    if (nearest[i] != param[i]) master[i] = value[i];
  }
}

Weights find_weights(const TensorSlot& slot, const Block& block, Buffers& buffers) {
  auto* master = static_cast<float*>(block.master);
  auto* param = static_cast<float*>(block.param);
  auto* remainder = static_cast<int16_t*>(block.master);
  switch (slot.form) {
    case WeightForm::kSingle:
      return {param, DType::kFloat32, param, nullptr, true};
    case WeightForm::kMaster:
      return {master, DType::kFloat32, master, nullptr, true};
    case WeightForm::kRemainder:
      return {block.param, slot.param_dtype, buffers.weight, remainder, false};
    case WeightForm::kStochastic:
      return {block.param, slot.param_dtype, buffers.weight, nullptr, false};
    default:
      return {param, DType::kFloat32, param, nullptr, false};
  }
}

Moments find_moments(const StepOptions& options, const Block& block, Buffers& buffers) {
  if (options.statistics != DType::kFloat32) return {buffers.m, nullptr, buffers.root_v};
  return {static_cast<float*>(block.m), static_cast<float*>(block.v), buffers.root_v};
}

Ranges new_moments(const TensorSlot& slot, const StepOptions& options, const Coefficients& c,
                   const Block& block, const Moments& moments) {
  Ranges ranges;
  const bool scaled = block.m_exponent != nullptr;
  const float m_scale = scaled ? adamw::decoding_scale(*block.m_exponent) : 1.0f;
  const float v_scale = scaled ? adamw::decoding_scale(*block.v_exponent) : 1.0f;
  CpuTypes::visit_pair(options.statistics, slot.grad_dtype, [&](auto statistics, auto grad) {
    using S = typename decltype(statistics)::type;
    using G = typename decltype(grad)::type;
    if constexpr (!std::is_same_v<S, double>) {
      const Inputs<S, G> inputs{static_cast<const S*>(block.m),
                                static_cast<const S*>(block.v),
                                static_cast<const G*>(block.grad),
                                m_scale,
                                v_scale,
                                options.control[0]};
      ranges = stages::new_moments(c, inputs, moments);
    }
  });
  return ranges;
}

// Where the new moments go; of fp16, with the exponents that the block has from now on.
StoredMoments find_stored_moments(const StepOptions& options, const Block& block,
                                  const Ranges& ranges) {
  StoredMoments stored{options.statistics, static_cast<uint16_t*>(block.m),
                       static_cast<uint16_t*>(block.v), 0, 0};
  if (options.statistics == DType::kFloat16) {
    stored.m_exponent = adamw::block_exponent(ranges.m.largest);
    stored.v_exponent = adamw::block_exponent(ranges.root_v.largest);
    *block.m_exponent = static_cast<int8_t>(stored.m_exponent);
    *block.v_exponent = static_cast<int8_t>(stored.v_exponent);
  }
  return stored;
}

void store_weights(const TensorSlot& slot, const Block& block, const float* weight,
                   uint32_t largest, Buffers& buffers) {
  if (slot.form == WeightForm::kSingle) return;
  if (slot.form == WeightForm::kMaster) return narrow(weight, slot.param_dtype, block.param);
  if (slot.form == WeightForm::kRemainder) {
    return scalar::split_masters(weight, static_cast<uint16_t*>(block.param),
                                 static_cast<int16_t*>(block.master));
  }
  const uint16_t* random = buffers.random[adamw::kWeight];
  const bool in_place = slot.form == WeightForm::kStochastic;
  const bool is_half =
      slot.form == WeightForm::kGridHalf || (in_place && slot.param_dtype == DType::kFloat16);
  uint16_t* out = in_place ? static_cast<uint16_t*>(block.param) : buffers.half;
  if (is_half) {
    stages::round_to_half<true>(weight, 1.0f, largest, random, out);
  } else {
    stages::round_to_bfloat16(weight, largest, random, out);
  }
  if (!in_place) {
    widen(out, is_half ? DType::kFloat16 : DType::kBFloat16, static_cast<float*>(block.param));
  }
}

// out = x, fp16 with the block's scale or bf16, stochastically rounded.
//   kSigned: false where no x has a sign.
template <bool kSigned>
void store_moment(DType type, const float* x, uint32_t largest, int exponent,
                  const uint16_t* random, uint16_t* out) {
  if (type == DType::kBFloat16) return stages::round_to_bfloat16(x, largest, random, out);
  // Scaled, finite numbers stay below 2^15.
  const uint32_t largest_scaled = largest < kInfinity ? adamw::bits_of(0x1p15f) : largest;
  stages::round_to_half<kSigned>(x, adamw::encoding_scale(exponent), largest_scaled, random, out);
}

void store_moments(const StoredMoments& to, const Moments& moments, const Ranges& ranges,
                   const Buffers& buffers) {
  if (to.type == DType::kFloat32) return;
  store_moment<true>(to.type, moments.m, ranges.m.largest, to.m_exponent,
                     buffers.random[adamw::kFirstMoment], to.m);
  store_moment<false>(to.type, moments.root_v, ranges.root_v.largest, to.v_exponent,
                      buffers.random[adamw::kSecondMoment], to.v);
}

void step_block(const TensorSlot& slot, const StepOptions& options, const Coefficients& c,
                const Block& block, const stages::Draws& draws, Buffers& buffers) {
  if (slot.form == WeightForm::kMaster) follow_params(slot, block);
  const Weights weights = find_weights(slot, block, buffers);
  const Moments moments = find_moments(options, block, buffers);
  const Ranges ranges = new_moments(slot, options, c, block, moments);
  // Between the other two, so that the processor begins with it while the last roots are found.
  draws.all();
  const StoredMoments stored = find_stored_moments(options, block, ranges);
  const Finished finished =
      stages::new_weights(c, moments, weights, stored, ranges, buffers.random);
  if (!finished.moments) store_moments(stored, moments, ranges, buffers);
  if (!finished.weights) store_weights(slot, block, weights.to, finished.largest_weight, buffers);
}

// The last block of a tensor whose size is no multiple of kBlock, in memory that is: zeros beyond
// the end change no maximum.
void step_part(const TensorSlot& slot, const StepOptions& options, const Coefficients& c,
               const Block& block, const stages::Draws& draws, int64_t count, Buffers& buffers) {
  constexpr size_t kBytes = kBlock * sizeof(float);
  alignas(64) unsigned char param[kBytes] = {}, grad[kBytes] = {}, m[kBytes] = {}, v[kBytes] = {};
  alignas(64) unsigned char master[kBytes] = {};
  const size_t n = static_cast<size_t>(count), statistics_bytes = n * size_of(options.statistics);
  const size_t param_bytes = n * size_of(slot.param_dtype);
  const size_t master_bytes = n * size_of_master(slot.form);
  std::memcpy(param, block.param, param_bytes);
  std::memcpy(grad, block.grad, n * size_of(slot.grad_dtype));
  std::memcpy(m, block.m, statistics_bytes);
  std::memcpy(v, block.v, statistics_bytes);
  if (master_bytes > 0) std::memcpy(master, block.master, master_bytes);
  step_block(slot, options, c, {param, grad, m, v, block.m_exponent, block.v_exponent, master},
             draws, buffers);
  std::memcpy(block.param, param, param_bytes);
  std::memcpy(block.m, m, statistics_bytes);
  std::memcpy(block.v, v, statistics_bytes);
  if (master_bytes > 0) std::memcpy(block.master, master, master_bytes);
}

template <typename T>
double sum_in_double(const T* x, int64_t count) {
  // The order of the sums is that of these lanes, whatever the width of the vectors: squares of
  // float32 are exact in float64.
  constexpr int kLanes = 32;
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double wide = static_cast<float>(x[i + lane]);
      sums[lane] += wide * wide;
    }
  }
  for (int lane = 0; i + lane < count; ++lane) {
    const double wide = static_cast<float>(x[i + lane]);
    sums[lane] += wide * wide;
  }
  return sum_tree(sums);
}

}  // namespace

void adamw_blocks(const TensorSlot& slot, const StepOptions& options, const Coefficients& c,
                  int64_t begin, int64_t end) {
  const auto at = [](auto* p, int64_t bytes) {
    using Byte =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(p)>>, const char, char>;
    return p == nullptr ? p : static_cast<decltype(p)>(static_cast<Byte*>(p) + bytes);
  };
  const int64_t statistics_size = static_cast<int64_t>(size_of(options.statistics));
  const int64_t param_size = static_cast<int64_t>(size_of(slot.param_dtype));
  const int64_t grad_size = static_cast<int64_t>(size_of(slot.grad_dtype));
  const int64_t master_size = static_cast<int64_t>(size_of_master(slot.form));
  Buffers buffers;
  if (!options.stochastic) {
    std::fill_n(buffers.random[0], adamw::kPurposes * kBlock,
                static_cast<uint16_t>(adamw::kNearest));
  }
  stages::Draws draws(stream_of(slot, options));
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index * kBlock, count = std::min<int64_t>(kBlock, slot.numel - first);
    const Block block{at(slot.param, first * param_size),
                      at(slot.grad, first * grad_size),
                      at(slot.m, first * statistics_size),
                      at(slot.v, first * statistics_size),
                      slot.m_exponents == nullptr ? nullptr : slot.m_exponents + index,
                      slot.v_exponents == nullptr ? nullptr : slot.v_exponents + index,
                      at(slot.master, first * master_size)};
    draws.set_block(static_cast<uint64_t>((slot.first_element + first) / adamw::kDraw),
                    buffers.random);
    if (count == kBlock) {
      step_block(slot, options, c, block, draws, buffers);
    } else {
      step_part(slot, options, c, block, draws, count, buffers);
    }
  }
}

void adamw_sum_of_squares(const adamw::GradSlot& slot, int64_t begin, int64_t end, double* sum) {
  CpuTypes::visit_single(slot.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    *sum = sum_in_double(static_cast<const T*>(slot.grad) + begin, end - begin);
  });
}

}  // namespace clipfast::CPU_CAPABILITY

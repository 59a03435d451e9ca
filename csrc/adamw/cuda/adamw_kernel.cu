// AdamW over a list of tensors on CUDA: kernel and launch, free of torch headers.
//
// A warp owns a block of 256 elements, each lane 8 that lie together: 16 bytes of a 2-byte type,
// and exactly one draw of Philox. The block's largest magnitudes, which give its
// scales, are found within the warp, so every element stays in registers between its load and its
// store, and nothing is read twice.
//
// At 14 to 20 bytes an element it is instructions that could keep a fast memory waiting. So what
// element.h says for every number, and branches for, is here decided once for a lane's 8: numbers
// in an ample range take shorter ways to the same bits.
#include "tensor_lists.cuh"

namespace clipfast::adamw {
namespace {

// 16 random bits an element, or those that round to nearest.
struct Random {
  uint64_t seed;
  uint64_t draw;
  uint32_t step;
  bool is_stochastic;

  __device__ __forceinline__ Draw operator()() const {
    if (is_stochastic) return philox(draw, step, seed);
    constexpr uint32_t kTwice = kNearest << 16 | kNearest;
    return {{kTwice, kTwice, kTwice, kTwice}};
  }
};

// Bits of the smallest and largest magnitude of a lane's numbers; a NaN's are the largest.
struct Range {
  uint32_t smallest, largest;
};

__device__ __forceinline__ Range range_of(const float (&v)[kLane]) {
  Range range{0xFFFFFFFFu, 0};
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const uint32_t magnitude = bits_of(v[i]) & 0x7FFFFFFFu;
    range.smallest = magnitude < range.smallest ? magnitude : range.smallest;
    range.largest = magnitude > range.largest ? magnitude : range.largest;
  }
  return range;
}

// Bits of 2^exponent.
__device__ constexpr uint32_t power_bits(int exponent) {
  return static_cast<uint32_t>(exponent + 127) << 23;
}

// Two 2-byte words, the upper halves of two numbers' bits.
__device__ __forceinline__ uint32_t upper_halves(uint32_t low, uint32_t high) {
  return low >> 16 | (high & 0xFFFF0000u);
}

// One 2-byte word an element, by narrow(element's value, its index).
template <typename Narrow>
__device__ __forceinline__ Words narrow_all(const float (&v)[kLane], const Narrow& narrow) {
  Words words{};
#pragma unroll
  for (int i = 0; i < kLane; ++i) set_half_word(words.word, i, narrow(v[i], i));
  return words;
}

__device__ __forceinline__ Words as_words(const float (&v)[kLane]) {
  Words words;
#pragma unroll
  for (int i = 0; i < kLane; ++i) words.word[i] = bits_of(v[i]);
  return words;
}

// round_to_bfloat16 of all.
__device__ __forceinline__ Words to_bfloat16(const float (&v)[kLane], const Draw& draw) {
  if (range_of(v).largest >= 0x7F7F0000u) {  // could pass the largest finite number, or is none
    return narrow_all(
        v, [&](float x, int i) { return round_to_bfloat16(x, half_word(draw.word, i)); });
  }
  Words words{};
#pragma unroll
  for (int i = 0; i < kLane; i += 2) {
    words.word[i / 2] = upper_halves(bits_of(v[i]) + half_word(draw.word, i),
                                     bits_of(v[i + 1]) + half_word(draw.word, i + 1));
  }
  return words;
}

// x as fp16 has 10 bits of 23; the rest are what the random ones carry into. x, and what it
// becomes, is a normal number of fp16.
__device__ __forceinline__ float to_half_grid(float x, uint32_t random) {
  return float_of((bits_of(x) + (random >> 3)) & 0xFFFFE000u);
}

// round_to_half of all, times scale.
//   range: of v
__device__ __forceinline__ Words to_half(const float (&v)[kLane], const Range& range, float scale,
                                         const Draw& draw) {
  // Below 2^15 no rounding overflows.
  const bool is_normal =
      float_of(range.smallest) * scale >= 0x1p-14f && float_of(range.largest) * scale < 0x1p15f;
  if (!is_normal) {
    return narrow_all(
        v, [&](float x, int i) { return round_to_half(x * scale, half_word(draw.word, i)); });
  }
  Words words{};
#pragma unroll
  for (int i = 0; i < kLane; i += 2) {
    // Exact: no other rounding follows.
    const __half2 pair =
        __floats2half2_rn(to_half_grid(v[i] * scale, half_word(draw.word, i)),
                          to_half_grid(v[i + 1] * scale, half_word(draw.word, i + 1)));
    memcpy(&words.word[i / 2], &pair, sizeof(pair));
  }
  return words;
}

// The words that fp32 weights come from: the param's, or half of them the remainder's; with a
// master the master's.
__device__ __forceinline__ Words load_weights(const TensorSlot& t, const Place& place) {
  const bool has_master = t.form == WeightForm::kMaster;
  Words words =
      load(has_master ? t.master : t.param, place, has_master || t.param_dtype == DType::kFloat32);
  if (t.form == WeightForm::kRemainder) {
    const Words low = load(t.master, place, false);
#pragma unroll
    for (int i = 0; i < kLane / 2; ++i) words.word[kLane / 2 + i] = low.word[i];
  }
  return words;
}

// x as the nearest value of a type of 16 bits, ties to even.
__device__ __forceinline__ Words to_nearest(DType type, const float (&x)[kLane]) {
  if (type == DType::kBFloat16) {
    return narrow_all(x, [](float v, int) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); });
  }
  return narrow_all(x, [](float v, int) { return __half_as_ushort(__float2half_rn(v)); });
}

//   params: with a master, the words of the param: set by hand since the last step where they are
//           not the master's nearest, and then the weights
__device__ __forceinline__ void widen_weights(const Words& words, const Words& params,
                                              const TensorSlot& t, float (&out)[kLane]) {
  if (t.form == WeightForm::kRemainder) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const uint16_t low = half_word(words.word + kLane / 2, i);
      out[i] = join_master(half_word(words.word, i), static_cast<int16_t>(low));
    }
  } else {
    widen_all(words, t.form == WeightForm::kMaster ? DType::kFloat32 : t.param_dtype, out);
  }
  if (t.form == WeightForm::kMaster) {
    const Words nearest = to_nearest(t.param_dtype, out);
    float set[kLane];
    widen_all(params, t.param_dtype, set);
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      if (half_word(nearest.word, i) != half_word(params.word, i)) out[i] = set[i];
    }
  }
}

// Weights on the grid of a 2-byte type, stored as such or as fp32.
__device__ __forceinline__ void store_rounded(const TensorSlot& t, const Place& place,
                                              const Draw& draw, float (&v)[kLane]) {
  const bool is_wide = t.param_dtype == DType::kFloat32;
  const DType grid = t.form == WeightForm::kStochastic     ? t.param_dtype
                     : t.form == WeightForm::kGridBfloat16 ? DType::kBFloat16
                                                           : DType::kFloat16;
  Words words =
      grid == DType::kBFloat16 ? to_bfloat16(v, draw) : to_half(v, range_of(v), 1.0f, draw);
  if (is_wide) {
    widen_all(words, grid, v);
    words = as_words(v);
  }
  store(t.param, place, is_wide, words);
}

// split_master of all.
__device__ __forceinline__ void store_split(const TensorSlot& t, const Place& place,
                                            const float (&v)[kLane]) {
  Words high{}, low{};
  if (range_of(v).largest > kInfinity) {  // a NaN's bits could round to an infinity's
    high = narrow_all(v, [](float x, int) { return split_master(x).high; });
    low = narrow_all(v, [](float x, int) { return static_cast<uint16_t>(split_master(x).low); });
  } else {
#pragma unroll
    for (int i = 0; i < kLane; i += 2) {
      const uint32_t a = bits_of(v[i]), b = bits_of(v[i + 1]);
      high.word[i / 2] = upper_halves(a + 0x8000u, b + 0x8000u);
      low.word[i / 2] = (a & 0xFFFFu) | b << 16;
    }
  }
  store(t.param, place, false, high);
  store(t.master, place, false, low);
}

__device__ __forceinline__ void store_weights(const TensorSlot& t, const Place& place,
                                              const Draw& draw, float (&v)[kLane]) {
  switch (t.form) {
    case WeightForm::kSingle:
      return store(t.param, place, true, as_words(v));
    case WeightForm::kRemainder:
      return store_split(t, place, v);
    case WeightForm::kMaster:
      store(t.master, place, true, as_words(v));
      return store(t.param, place, false, to_nearest(t.param_dtype, v));
    default:
      return store_rounded(t, place, bits_for(kWeight, draw), v);
  }
}

// The largest of the warp's values; all lanes must call.
__device__ __forceinline__ uint32_t warp_largest(uint32_t v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, v);
#else
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, v, offset);
    v = other > v ? other : v;
  }
  return v;
#endif
}

// One kind of statistics of a block: m, or v's root (v itself where S is float).
template <typename S>
struct Statistics {
  static constexpr bool kIsWide = std::is_same_v<S, float>;
  Words words;
  float scale;
  int8_t* exponent;

  __device__ __forceinline__ Statistics(const void* base, const Place& place, int8_t* exponent)
      : words(load(base, place, kIsWide)), exponent(exponent) {
    if constexpr (std::is_same_v<S, __half>) scale = decoding_scale(*exponent);
  }

  __device__ __forceinline__ float value(int i) const {
    if constexpr (kIsWide) {
      return float_of(words.word[i]);
    } else if constexpr (std::is_same_v<S, __half>) {
      return from_half(half_word(words.word, i)) * scale;
    } else {
      return from_bfloat16(half_word(words.word, i));
    }
  }

  __device__ __forceinline__ void write(void* base, const Place& place, const Draw& draw,
                                        Purpose purpose, const float (&v)[kLane],
                                        const Range& range) const {
    if constexpr (kIsWide) {
      store(base, place, true, as_words(v));
    } else if constexpr (std::is_same_v<S, __half>) {
      const int e = block_exponent(warp_largest(range.largest));
      if (threadIdx.x % kWarp == 0) *exponent = static_cast<int8_t>(e);
      store(base, place, false, to_half(v, range, encoding_scale(e), bits_for(purpose, draw)));
    } else {
      store(base, place, false, to_bfloat16(v, bits_for(purpose, draw)));
    }
  }
};

// The hardware's approximations, which emulators bring themselves.
#ifndef CLIPFAST_EMULATED_CUDA
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float approximate_inverse_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// sqrt(x) to the nearest for x in [2^-100, 2^60], and numerator / denominator where no intermediate
// result leaves the normal numbers: Newton's step and the remainder's, as the compiler has them
// between the checks that it makes for every number.
__device__ __forceinline__ float plain_root(float x) {
  const float y = approximate_inverse_root(x);
  const float root = x * y;
  return fmaf(fmaf(-root, root, x), 0.5f * y, root);
}

__device__ __forceinline__ float plain_quotient(float numerator, float denominator) {
  float y = approximate_reciprocal(denominator);
  y = fmaf(y, fmaf(-denominator, y, 1.0f), y);
  const float quotient = numerator * y;
  return fmaf(y, fmaf(-denominator, quotient, numerator), quotient);
}

// What all blocks of a chunk share.
struct Start {
  Coefficients coefficients;
  float factor;  // of the gradients
  uint32_t step;
  int item;
  bool is_skipped;
  bool is_plain;  // 1 <= inverse_correction <= 2^8 and 0 <= eps <= 1
};

__device__ __forceinline__ Start make_start(const Coefficients& c, const float* control,
                                            uint32_t step, int item) {
  const bool is_plain = c.inverse_correction >= 1.0f && c.inverse_correction <= 256.0f &&
                        c.eps >= 0.0f && c.eps <= 1.0f;
  return {c, control[0], step, item, control[1] != 0.0f, is_plain};
}

// Whether plain_root and plain_quotient serve: roots are in [2^-50, 2^30], denominators then in
// [2^-50, 2^39], quotients in [2^-119, 2^110].
__device__ __forceinline__ bool are_plain(const Range& m, const Range& v) {
  return m.smallest >= power_bits(-80) && m.largest <= power_bits(60) &&
         v.smallest >= power_bits(-100) && v.largest <= power_bits(60);
}

// The ranges of new statistics.
struct Ranges {
  Range m, root;
};

// element.h's new_moments() and new_weight() of a lane's elements. In: m and v; out: m and v's
// root, or v where kKeepV. Elements that do not exist are zeros and stay so; or, where the factor
// is not finite, become NaN, as all do that exist in the block, or infinite, which has the same
// exponent.
template <bool kKeepV>
__device__ __forceinline__ Ranges update_all(float (&weight)[kLane], const float (&grad)[kLane],
                                             float (&m)[kLane], float (&v)[kLane],
                                             const Start& start) {
  const Coefficients& c = start.coefficients;
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const float g = grad[i] * start.factor;
    m[i] = fmaf(c.beta1, m[i], c.rest1 * g);
    v[i] = fmaf(c.beta2, v[i], c.rest2 * (g * g));
  }
  const auto move = [&](int i, float direction) {
    weight[i] = fmaf(-c.step_size, direction, c.decay * weight[i]);
  };
  Ranges ranges{range_of(m), range_of(v)};
  if (start.is_plain && are_plain(ranges.m, ranges.root)) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const float root = plain_root(v[i]);
      move(i, plain_quotient(m[i], fmaf(root, c.inverse_correction, c.eps)));
      if (!kKeepV) v[i] = root;
    }
    // The root does not change the order.
    ranges.root.smallest = bits_of(plain_root(float_of(ranges.root.smallest)));
    ranges.root.largest = bits_of(plain_root(float_of(ranges.root.largest)));
  } else {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const float root = sqrtf(v[i]);
      move(i, m[i] / fmaf(root, c.inverse_correction, c.eps));
      if (!kKeepV) v[i] = root;
    }
    ranges = {range_of(m), range_of(v)};
  }
  if (c.maximum < float_of(kInfinity)) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) weight[i] = weight[i] > c.maximum ? c.maximum : weight[i];
  }
  return ranges;
}

template <typename S>
__device__ __forceinline__ void update_block(const TensorSlot& t, const Start& start,
                                             const Place& place, int64_t block,
                                             const Random& random) {
  constexpr bool kKeepV = Statistics<S>::kIsWide;
  // All loads, before anything waits for one.
  const Words weight_words = load_weights(t, place);
  const Words param_words = t.form == WeightForm::kMaster ? load(t.param, place, false) : Words{};
  const Words grad_words = load(t.grad, place, t.grad_dtype == DType::kFloat32);
  const Statistics<S> first(t.m, place, t.m_exponents + block);
  const Statistics<S> second(t.v, place, t.v_exponents + block);

  float weight[kLane], grad[kLane], m[kLane], v[kLane];
  widen_weights(weight_words, param_words, t, weight);
  widen_all(grad_words, t.grad_dtype, grad);
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const float old = second.value(i);
    m[i] = first.value(i);
    v[i] = kKeepV ? old : old * old;
  }
  const Ranges ranges = update_all<kKeepV>(weight, grad, m, v, start);
  const bool is_rounded = !kKeepV || rounds_weights(t.form);
  const Draw draw = is_rounded ? random() : Draw{};
  store_weights(t, place, draw, weight);
  first.write(t.m, place, draw, kFirstMoment, m, ranges.m);
  second.write(t.v, place, draw, kSecondMoment, v, ranges.root);
}

struct StepArguments {
  StepOptions options;
  int64_t chunk_blocks;  // blocks of 256 elements that one thread block takes
  List<TensorSlot, kFitting<TensorSlot, StepOptions>> list;
};
static_assert(sizeof(StepArguments) <= kArgumentBytes, "too long for a launch");

template <typename S>
__global__ void __launch_bounds__(kBlockThreads, 3)
    adamw_kernel(const StepArguments __grid_constant__ args) {
  __shared__ Start shared;
  if (threadIdx.x == 0) {
    const int item = find_item(args.list, blockIdx.x);
    const auto step = static_cast<uint32_t>(*args.list.item[item].step);
    shared = make_start(coefficients(args.options.hyper, step), args.options.control, step, item);
  }
  __syncthreads();
  const Start start = shared;
  if (start.is_skipped) return;

  const TensorSlot& t = args.list.item[start.item];
  const bool is_aligned = are_aligned(t.param, t.grad, t.m, t.v, t.master);
  const int64_t begin = int64_t{blockIdx.x - args.list.first_chunk[start.item]} * args.chunk_blocks;
  const int64_t blocks = (t.numel + kBlock - 1) / kBlock;
  const int64_t end = begin + args.chunk_blocks < blocks ? begin + args.chunk_blocks : blocks;
  for (int64_t block = begin + threadIdx.x / kWarp; block < end; block += kWarps) {
    Place place = make_place(block * kBlock + threadIdx.x % kWarp * kLane, t.numel);
    place.is_packed = is_aligned && (block + 1) * kBlock <= t.numel;
    const auto draw = static_cast<uint64_t>((t.first_element + place.first) / kDraw);
    update_block<S>(t, start, place, block,
                    {args.options.seed, draw, start.step, args.options.stochastic});
  }
}

// Blocks of 256 elements a thread block takes: many, since each one first finds its tensor and its
// coefficients, but no more than leave every multiprocessor some dozens of thread blocks.
int64_t pick_chunk_blocks(const TensorSlot* slots, int64_t count, int multiprocessors) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += blocks_of(slots[i].numel);
  int64_t chunk = 8 * kWarps;
  while (chunk > kWarps && blocks < chunk * multiprocessors * 32) chunk /= 2;
  return chunk;
}

}  // namespace

const char* launch_adamw(const TensorSlot* slots, int64_t count, const StepOptions& options,
                         int multiprocessors, void* stream) {
  StepArguments args;
  args.options = options;
  args.chunk_blocks = pick_chunk_blocks(slots, count, multiprocessors);
  const auto chunks_of = [&](const TensorSlot& slot) {
    return (blocks_of(slot.numel) + args.chunk_blocks - 1) / args.chunk_blocks;
  };
  CudaTypes::visit_single(options.statistics, [&](auto type) {
    using S = typename decltype(type)::type;
    for_each_list(args.list, slots, count, chunks_of, [&](uint32_t chunks) {
      adamw_kernel<S><<<chunks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
    });
  });
  return launch_error();
}

}  // namespace clipfast::adamw

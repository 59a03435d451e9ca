// Epilogues over a tile of products with ATen's vector types; compiled once a CPU capability.
//
// Each reads a tile once, from cache, while the eager form sends every logit through memory about
// ten times (scale, two softmaxes with their maxima and sums, and their backwards).
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "contrastive/contrastive.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

using Vec = at::vec::Vectorized<float>;
using Bits = at::vec::Vectorized<int32_t>;

// 2^t to 1.4 units in the last place, zero below 2^-126. t = n + r: a polynomial for 2^r on
// [-1/2, 1/2], and n added to its exponent. Its coefficients are the least-squares ones reweighted
// until the relative error is level (1.9e-9).
inline Vec exp2(const Vec& t_in) {
  const Vec t = at::vec::minimum(t_in, Vec(128.0f));
  const Vec n = t.round();
  const Vec r = t - n;
  Vec p(0x1.41d334p-13f);
  p = at::vec::fmadd(p, r, Vec(0x1.5f456ap-10f));
  p = at::vec::fmadd(p, r, Vec(0x1.3b2dbcp-7f));
  p = at::vec::fmadd(p, r, Vec(0x1.c6aed4p-5f));
  p = at::vec::fmadd(p, r, Vec(0x1.ebfbdap-3f));
  p = at::vec::fmadd(p, r, Vec(0x1.62e430p-1f));
  p = at::vec::fmadd(p, r, Vec(1.0f));
  const Bits exponent = at::vec::convert_to_int_of_same_size(n) << Bits(23);
  const Vec result = at::vec::cast<float>(at::vec::cast<int32_t>(p) + exponent);
  return Vec::blendv(result, Vec(0.0f), t < Vec(-126.0f));
}

inline float sum_lanes(const Vec& v) {
  float lanes[Vec::size()];
  v.store(lanes);
  // A tree, so that lanes are added in one fixed order and in few roundings.
  for (int half = Vec::size() / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

inline Vec lane_numbers(int64_t first) { return Vec::arange(static_cast<float>(first), 1.0f); }

// Calls visit(first lane, number of lanes, vector load of a float array at those lanes), for whole
// vectors and then for what is left.
template <typename Visit>
inline void for_each_vector(int64_t lanes, const Visit& visit) {
  int64_t i = 0;
  for (; i + Vec::size() <= lanes; i += Vec::size()) {
    visit(i, Vec::size(), [i](const float* p) { return Vec::loadu(p + i); });
  }
  if (i < lanes) {
    const int64_t count = lanes - i;
    visit(i, count, [i, count](const float* p) { return Vec::loadu(p + i, count); });
  }
}

inline void store(const Vec& v, float* p, int64_t count) {
  if (count == Vec::size()) {
    v.store(p);
  } else {
    v.store(p, static_cast<int>(count));
  }
}

// The lane in which outer c meets its pair, or -1.
inline int64_t pair_lane(const Tile& tile, int64_t c) {
  const int64_t lane = c + tile.pair_shift;
  return lane >= 0 && lane < tile.lanes ? lane : -1;
}

inline Vec without_lane(const Vec& v, int64_t first, int64_t lane) {
  return Vec::blendv(v, Vec(0.0f), lane_numbers(first) == Vec(static_cast<float>(lane)));
}

}  // namespace

void tile_statistics(const TileStatistics& args) {
  const Tile& tile = args.tile;
  std::fill_n(args.lane_sum, tile.lanes, 0.0f);
  const Vec shift(args.shift);
  for (int64_t c = 0; c < tile.outers; ++c) {
    const float* products = tile.products + c * tile.stride;
    const Vec factor(tile.outer_factor[c]);
    const int64_t pair = pair_lane(tile, c);
    Vec total(0.0f);
    for_each_vector(tile.lanes, [&](int64_t i, int64_t count, const auto& load) {
      const Vec logit = load(products) * load(tile.lane_scale) * factor;
      Vec e = exp2(logit - shift);
      if (pair >= i && pair < i + count) e = without_lane(e, i, pair);
      if (count < Vec::size()) e = Vec::set(Vec(0.0f), e, count);
      store(load(args.lane_sum) + e, args.lane_sum + i, count);
      total = total + e;
    });
    args.outer_sum[c] = sum_lanes(total);
  }
}

void tile_maxima(const TileMaxima& args) {
  const Tile& tile = args.tile;
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  // Keeps a NaN, so that features with one give a NaN loss.
  const auto larger = [](float a, float b) { return a > b || a != a ? a : b; };
  const auto rescale = [](float from, float to) {
    return from == kNone ? 0.0 : std::exp2(static_cast<double>(from) - to);
  };
  std::vector<float> before(args.lane_max, args.lane_max + tile.lanes);
  for (int64_t c = 0; c < tile.outers; ++c) {
    const int64_t pair = pair_lane(tile, c);
    float* logits = args.logits + c * tile.lanes;
    float largest = args.outer_max[c];
    for (int64_t i = 0; i < tile.lanes; ++i) {
      logits[i] = i == pair ? kNone
                            : tile.products[c * tile.stride + i] * tile.lane_scale[i] *
                                  tile.outer_factor[c];
      largest = larger(logits[i], largest);
      args.lane_max[i] = larger(logits[i], args.lane_max[i]);
    }
    double total = args.outer_sum[c] * rescale(args.outer_max[c], largest);
    for (int64_t i = 0; i < tile.lanes; ++i) total += rescale(logits[i], largest);
    args.outer_max[c] = largest;
    args.outer_sum[c] = total;
  }
  for (int64_t i = 0; i < tile.lanes; ++i) {
    args.lane_sum[i] *= rescale(before[i], args.lane_max[i]);
  }
  for (int64_t c = 0; c < tile.outers; ++c) {
    for (int64_t i = 0; i < tile.lanes; ++i) {
      args.lane_sum[i] += rescale(args.logits[c * tile.lanes + i], args.lane_max[i]);
    }
  }
}

void tile_weights(const TileWeights& args) {
  const Tile& tile = args.tile;
  const Vec shift(args.shift);
  for (int64_t c = 0; c < tile.outers; ++c) {
    const float* products = tile.products + c * tile.stride;
    float* weights = args.weights + c * tile.stride;
    const Vec factor(tile.outer_factor[c]);
    const Vec outer_weight(args.outer_weight[c]);
    const int64_t pair = pair_lane(tile, c);
    for_each_vector(tile.lanes, [&](int64_t i, int64_t count, const auto& load) {
      const Vec logit = load(products) * load(tile.lane_scale) * factor;
      const Vec lane_factor = load(args.lane_factor);
      const Vec lane_weight = load(args.lane_weight);
      Vec q;
      if (args.exact) {
        q = (exp2(logit - lane_weight) + exp2(logit - outer_weight)) * lane_factor * factor;
      } else {
        q = exp2(logit - shift) * factor * at::vec::fmadd(outer_weight, lane_factor, lane_weight);
      }
      if (pair >= i && pair < i + count) q = without_lane(q, i, pair);
      store(q, weights + i, count);
    });
  }
}

void transpose(const Matrix& args) {
  constexpr int64_t kBlock = 16;
  const float* source = static_cast<const float*>(args.source);
  float* target = static_cast<float*>(args.target);
  for (int64_t i = 0; i < args.rows; i += kBlock) {
    const int rows = static_cast<int>(std::min(kBlock, args.rows - i));
    for (int64_t j = 0; j < args.columns; j += kBlock) {
      const int columns = static_cast<int>(std::min(kBlock, args.columns - j));
      at::vec::transpose_mxn<float>(source + i * args.source_stride + j, args.source_stride,
                                    target + j * args.target_stride + i, args.target_stride, rows,
                                    columns);
    }
  }
}

namespace {

inline void round_row(const float* source, c10::BFloat16* target, int64_t count) {
  using Half = at::vec::Vectorized<c10::BFloat16>;
  int64_t i = 0;
  for (; i + Half::size() <= count; i += Half::size()) {
    at::vec::convert_from_float<c10::BFloat16>(Vec::loadu(source + i),
                                               Vec::loadu(source + i + Vec::size()))
        .store(target + i);
  }
  for (; i < count; ++i) target[i] = source[i];
}

}  // namespace

void transpose_to_bf16(const Matrix& args) {
  constexpr int64_t kBlock = 16;
  const float* source = static_cast<const float*>(args.source);
  auto* target = static_cast<c10::BFloat16*>(args.target);
  float block[kBlock * 2 * kBlock];
  // Two blocks side by side: a full vector of bfloat16 a row.
  for (int64_t i = 0; i < args.rows; i += 2 * kBlock) {
    const int64_t rows = std::min(2 * kBlock, args.rows - i);
    for (int64_t j = 0; j < args.columns; j += kBlock) {
      const int columns = static_cast<int>(std::min(kBlock, args.columns - j));
      for (int64_t half = 0; half < rows; half += kBlock) {
        at::vec::transpose_mxn<float>(source + (i + half) * args.source_stride + j,
                                      args.source_stride, block + half, 2 * kBlock,
                                      static_cast<int>(std::min(kBlock, rows - half)), columns);
      }
      for (int64_t k = 0; k < columns; ++k) {
        round_row(block + k * 2 * kBlock, target + (j + k) * args.target_stride + i, rows);
      }
    }
  }
}

void round_to_bf16(const Matrix& args) {
  const float* source = static_cast<const float*>(args.source);
  auto* target = static_cast<c10::BFloat16*>(args.target);
  for (int64_t i = 0; i < args.rows; ++i) {
    round_row(source + i * args.source_stride, target + i * args.target_stride, args.columns);
  }
}

void interleave_rows(const Matrix& args) {
  const auto* source = static_cast<const uint16_t*>(args.source);
  auto* target = static_cast<uint32_t*>(args.target);
  for (int64_t i = 0; i < args.rows; i += 2) {
    const uint16_t* even = source + i * args.source_stride;
    uint32_t* out = target + (i / 2) * args.target_stride;
    if (i + 1 == args.rows) {
      for (int64_t j = 0; j < args.columns; ++j) out[j] = even[j];
      continue;
    }
    const uint16_t* odd = even + args.source_stride;
    for (int64_t j = 0; j < args.columns; ++j) {
      out[j] = even[j] | static_cast<uint32_t>(odd[j]) << 16;
    }
  }
}

}  // namespace clipfast::CPU_CAPABILITY

// Resized squares with ATen's vector types; compiled once per CPU capability.
//
// Rows are summed first: neighbours in memory fall into the lanes of a vector, whatever channel
// they are of. For the columns a strip of output rows is transposed, so that a lane is a row:
// weights are then the same in all lanes, and channels do not meet.
#include "resize.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace clipfast::CPU_CAPABILITY {
namespace {

using Floats = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Floats::size();
constexpr int64_t kChannels = 3;

// For each output place the inputs that it is a sum of.
struct Taps {
  std::vector<int64_t> first, count;
  std::vector<float> weights;  // [size, most]
  int64_t most;

  // Where the inputs of all outputs begin and end.
  int64_t begin() const { return first.front(); }
  int64_t end() const { return first.back() + count.back(); }
};

// Keys' cubic, a = -1/2, as Pillow and torch have it; 0 from 2 on.
inline float cubic(float x) {
  const float near = (1.5f * x - 2.5f) * x * x + 1.0f;
  const float far = ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f;
  return x < 1.0f ? near : (x < 2.0f ? far : 0.0f);
}

void find_taps(Taps& taps, double start, double side, int64_t inputs, int64_t size) {
  const double step = side / static_cast<double>(size);
  const double stretch = std::max(step, 1.0);
  const double reach = 2.0 * stretch;
  const float inverse = static_cast<float>(1.0 / stretch);
  taps.most = static_cast<int64_t>(std::ceil(2.0 * reach)) + 1;
  taps.first.resize(size);
  taps.count.resize(size);
  taps.weights.resize(size * taps.most);
  for (int64_t i = 0; i < size; ++i) {
    const double center = start + (static_cast<double>(i) + 0.5) * step;
    const auto low =
        std::clamp<int64_t>(std::llround(std::floor(center - reach + 0.5)), 0, inputs - 1);
    const auto high =
        std::clamp<int64_t>(std::llround(std::floor(center + reach + 0.5)), low + 1, inputs);
    float* weights = taps.weights.data() + i * taps.most;
    const auto offset = static_cast<float>(static_cast<double>(low) + 0.5 - center);
    const int64_t count = std::min(high - low, taps.most);
    float sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      weights[k] = cubic(std::abs((offset + static_cast<float>(k)) * inverse));
    }
    for (int64_t k = 0; k < count; ++k) sum += weights[k];
    const float scale = 1.0f / sum;
    for (int64_t k = 0; k < count; ++k) weights[k] *= scale;
    taps.first[i] = low;
    taps.count[i] = count;
  }
}

inline Floats load_bytes(const uint8_t* p) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
#else
  float values[kLanes];
  std::copy_n(p, kLanes, values);
  return Floats::loadu(values);
#endif
}

// kVectors vectors of a weighted sum of rows.
template <int kVectors>
inline void sum_rows(const uint8_t* rows, int64_t stride, const float* weights, int64_t count,
                     float* out) {
  Floats sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = Floats(0.0f);
  for (int64_t k = 0; k < count; ++k, rows += stride) {
    const Floats weight(weights[k]);
    for (int v = 0; v < kVectors; ++v) {
      sums[v] = at::vec::fmadd(load_bytes(rows + v * kLanes), weight, sums[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) sums[v].store(out + v * kLanes);
}

void sum_row(const uint8_t* rows, int64_t stride, const float* weights, int64_t count, float* out,
             int64_t elements) {
  constexpr int kVectors = 4;
  int64_t e = 0;
  for (; e + kVectors * kLanes <= elements; e += kVectors * kLanes) {
    sum_rows<kVectors>(rows + e, stride, weights, count, out + e);
  }
  for (; e + kLanes <= elements; e += kLanes) {
    sum_rows<1>(rows + e, stride, weights, count, out + e);
  }
  if (e < elements && elements >= kLanes) {
    // Some are summed again: nothing past the row is read.
    e = elements - kLanes;
    sum_rows<1>(rows + e, stride, weights, count, out + e);
    return;
  }
  for (; e < elements; ++e) {
    float sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += weights[k] * rows[k * stride + e];
    out[e] = sum;
  }
}

void transpose(const float* source, int64_t source_stride, float* target, int64_t target_stride,
               int64_t rows, int64_t columns) {
  constexpr int64_t kBlock = std::min<int64_t>(16, kLanes);
  for (int64_t i = 0; i < rows; i += kBlock) {
    for (int64_t j = 0; j < columns; j += kBlock) {
      at::vec::transpose_mxn<float>(source + i * source_stride + j, source_stride,
                                    target + j * target_stride + i, target_stride,
                                    static_cast<int>(std::min(kBlock, rows - i)),
                                    static_cast<int>(std::min(kBlock, columns - j)));
    }
  }
}

// The columns of a strip whose lanes are rows: [elements, lanes] -> [size * 3, lanes], normalised.
void sum_columns(const ResizeArgs& args, const Taps& columns, const float* strip, float* out) {
  const Floats zero(0.0f), most(255.0f);
  const Floats factor[] = {Floats(args.factor[0]), Floats(args.factor[1]), Floats(args.factor[2])};
  const Floats offset[] = {Floats(args.offset[0]), Floats(args.offset[1]), Floats(args.offset[2])};
  const int64_t begin = columns.begin();
  for (int64_t x = 0; x < args.size; ++x, out += kChannels * kLanes) {
    const float* weights = columns.weights.data() + x * columns.most;
    const float* p = strip + (columns.first[x] - begin) * kChannels * kLanes;
    Floats sums[] = {zero, zero, zero};
    for (int64_t k = 0; k < columns.count[x]; ++k, p += kChannels * kLanes) {
      const Floats weight(weights[k]);
      for (int c = 0; c < kChannels; ++c) {
        sums[c] = at::vec::fmadd(Floats::loadu(p + c * kLanes), weight, sums[c]);
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      const Floats rounded = at::vec::clamp(sums[c].round(), zero, most);
      at::vec::fmadd(rounded, factor[c], offset[c]).store(out + c * kLanes);
    }
  }
}

}  // namespace

void resize_images(const ResizeArgs& args, int64_t begin, int64_t end) {
  const int64_t size = args.size;
  Taps rows, columns;
  std::vector<float> strip, turned, result(size * kChannels * kLanes);
  for (int64_t i = begin; i < end; ++i) {
    const ResizeImage& image = args.images[i];
    find_taps(rows, image.top, image.side, image.height, size);
    find_taps(columns, image.left, image.side, image.width, size);
    const int64_t stride = image.width * kChannels;
    const int64_t elements = (columns.end() - columns.begin()) * kChannels;
    strip.resize(std::max<size_t>(strip.size(), kLanes * elements));
    turned.resize(std::max<size_t>(turned.size(), kLanes * elements));
    const uint8_t* pixels = image.pixels + columns.begin() * kChannels;
    for (int64_t y = 0; y < size; y += kLanes) {
      const int64_t lanes = std::min(kLanes, size - y);
      for (int64_t r = 0; r < lanes; ++r) {
        sum_row(pixels + rows.first[y + r] * stride, stride,
                rows.weights.data() + (y + r) * rows.most, rows.count[y + r],
                strip.data() + r * elements, elements);
      }
      transpose(strip.data(), elements, turned.data(), kLanes, lanes, elements);
      sum_columns(args, columns, turned.data(), result.data());
      transpose(result.data(), kLanes, image.out + y * size * kChannels, size * kChannels,
                size * kChannels, lanes);
    }
  }
}

}  // namespace clipfast::CPU_CAPABILITY

// Batch norm over rows with ATen's vector types; compiled once per CPU capability.
//
// Rows are read in the order in which they lie, and a channel's running sums stay in the
// first-level cache: with many channels the other order would touch a new page at each step.
#include "batch_norm.h"

#include "streaming.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

template <typename Acc>
inline Vectorized<Acc> keep_where_positive(const Vectorized<Acc>& v, const Vectorized<Acc>& z) {
  const Vectorized<Acc> zero(Acc(0));
  return Vectorized<Acc>::blendv(v, zero, z <= zero);
}

// v where z > 0 or z is NaN, as torch's backward of ReLU has it; 0 elsewhere.
template <typename Acc>
inline Pair<Acc> keep_where_positive(const Pair<Acc>& v, const Pair<Acc>& z) {
  return {keep_where_positive(v.lo, z.lo), keep_where_positive(v.hi, z.hi)};
}

// NaN stays NaN.
template <typename Acc>
inline Pair<Acc> relu_of(const Pair<Acc>& v) {
  const Vectorized<Acc> zero(Acc(0));
  return {at::vec::maximum(v.lo, zero), at::vec::maximum(v.hi, zero)};
}

struct RowRange {
  int64_t begin, end;

  double size() const { return static_cast<double>(end - begin); }
};

inline RowRange rows_of(const BatchNormRows& shape, int64_t tile) {
  return {tile * shape.tile_rows, std::min((tile + 1) * shape.tile_rows, shape.rows)};
}

// The mean of a tile's first rows: within about a third of a standard deviation of the tile's mean,
// where the first row alone may lie three away, and lose four bits of the variance.
constexpr int64_t kShiftRows = 8;

template <typename T>
void store_shift(const T* x, int64_t rows, int64_t channels, acc_t<T>* shift) {
  using Acc = acc_t<T>;
  const int64_t count = std::min(rows, kShiftRows);
  const auto inverse = splat(Acc(1) / static_cast<Acc>(count));
  for_each_step<Acc>(channels, [&](int64_t j, auto step) {
    auto sum = step.load(x + j);
    for (int64_t row = 1; row < count; ++row) sum = sum + step.load(x + row * channels + j);
    step.store(shift + j, sum * inverse);
  });
}

// Sums of x - shift and of its square, from one reading of x. Four short rows at a time: a sum is
// loaded and stored once for four. Four long ones would be four streams of reads side by side,
// which the machine fetches ahead at half the rate of one.
template <typename T>
void moments(const BatchNormMomentArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int64_t channels = args.shape.channels;
  const bool short_rows = 4 * channels * static_cast<int64_t>(sizeof(T)) <= 1024;
  for (int64_t tile = begin; tile < end; ++tile) {
    const auto range = rows_of(args.shape, tile);
    Acc* squares = static_cast<Acc*>(args.moments) + tile * 3 * channels;
    Acc* shift = squares + channels;
    Acc* sum = shift + channels;
    std::fill_n(squares, 3 * channels, Acc(0));
    int64_t row = range.begin;
    const T* x = static_cast<const T*>(args.x) + row * channels;
    store_shift(x, range.end - range.begin, channels, shift);
    for (; short_rows && row + 4 <= range.end; row += 4, x += 4 * channels) {
      for_each_step<Acc>(channels, [&](int64_t j, auto step) {
        const auto origin = step.load(shift + j);
        const auto a = step.load(x + j) - origin, b = step.load(x + j + channels) - origin;
        const auto c = step.load(x + j + 2 * channels) - origin;
        const auto d = step.load(x + j + 3 * channels) - origin;
        step.store(sum + j, step.load(sum + j) + ((a + b) + (c + d)));
        step.store(squares + j, step.load(squares + j) + (fused(a, a, b * b) + fused(c, c, d * d)));
      });
    }
    for (; row < range.end; ++row, x += channels) {
      for_each_step<Acc>(channels, [&](int64_t j, auto step) {
        const auto a = step.load(x + j) - step.load(shift + j);
        step.store(sum + j, step.load(sum + j) + a);
        step.store(squares + j, fused(a, a, step.load(squares + j)));
      });
    }
    const auto inverse = splat(static_cast<Acc>(1 / range.size()));
    for_each_step<Acc>(channels, [&](int64_t j, auto step) {
      const auto total = step.load(sum + j), distance = total * inverse;
      step.store(squares + j, relu_of(step.load(squares + j) - total * distance));
      step.store(sum + j, distance);
    });
  }
}

// Calls visit(sums, rows of the tile) for each tile in turn: the tile's kSums sums at the channels
// [c, c + 1), ..., `channels` elements apart.
template <typename Acc, int64_t kSums, typename Visit>
inline void for_each_tile(const BatchNormRows& shape, const void* sums, int64_t c,
                          const Visit& visit) {
  const Acc* tile_sums = static_cast<const Acc*>(sums) + c;
  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    visit(tile_sums + tile * kSums * shape.channels, rows_of(shape, tile).size());
  }
}

// Channels whose float64 sums are held at a time.
constexpr int64_t kBlock = 32;

template <typename Acc>
void statistics(const BatchNormStatisticsArgs& args, int64_t begin, int64_t end) {
  const auto& shape = args.shape;
  const int64_t channels = shape.channels;
  const double n = static_cast<double>(shape.rows);
  for (int64_t c = begin; c < end; c += kBlock) {
    const int64_t count = std::min(kBlock, end - c);
    double mean[kBlock] = {}, squares[kBlock] = {};
    // In float64: a mean may be large beside its distance from the other tiles' means.
    const auto tile_mean = [channels](const Acc* sums, int64_t i) {
      return static_cast<double>(sums[channels + i]) + static_cast<double>(sums[2 * channels + i]);
    };
    for_each_tile<Acc, 3>(shape, args.moments, c, [&](const Acc* sums, double size) {
      for (int64_t i = 0; i < count; ++i) mean[i] += size * tile_mean(sums, i);
    });
    for (int64_t i = 0; i < count; ++i) mean[i] /= n;
    for_each_tile<Acc, 3>(shape, args.moments, c, [&](const Acc* sums, double size) {
      for (int64_t i = 0; i < count; ++i) {
        const double apart = tile_mean(sums, i) - mean[i];
        squares[i] += static_cast<double>(sums[i]) + size * apart * apart;
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      const double var = squares[i] / n;
      static_cast<Acc*>(args.mean)[c + i] = static_cast<Acc>(mean[i]);
      static_cast<Acc*>(args.var)[c + i] = static_cast<Acc>(var);
      static_cast<Acc*>(args.inv_std)[c + i] = static_cast<Acc>(1.0 / std::sqrt(var + args.eps));
    }
  }
}

template <typename Acc>
void coefficients(const BatchNormCoefficientArgs& args, int64_t begin, int64_t end) {
  const auto& shape = args.shape;
  const double n = static_cast<double>(shape.rows);
  for (int64_t c = begin; c < end; c += kBlock) {
    const int64_t count = std::min(kBlock, end - c);
    double grad_bias[kBlock] = {}, dot[kBlock] = {};
    for_each_tile<Acc, 2>(shape, args.sums, c, [&](const Acc* sums, double) {
      for (int64_t i = 0; i < count; ++i) {
        grad_bias[i] += static_cast<double>(sums[i]);
        dot[i] += static_cast<double>(sums[shape.channels + i]);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      const double inv_std = static_cast<const Acc*>(args.inv_std)[c + i];
      const double scale = static_cast<const Acc*>(args.scale)[c + i];
      const double grad_weight = inv_std * dot[i];
      static_cast<Acc*>(args.grad_weight)[c + i] = static_cast<Acc>(grad_weight);
      static_cast<Acc*>(args.grad_bias)[c + i] = static_cast<Acc>(grad_bias[i]);
      static_cast<Acc*>(args.slope)[c + i] = static_cast<Acc>(-scale * inv_std * grad_weight / n);
      static_cast<Acc*>(args.offset)[c + i] = static_cast<Acc>(-scale * grad_bias[i] / n);
    }
  }
}

// (x - mean) * scale + bias. The backward pass repeats these very roundings to find the sign.
template <typename Acc>
struct Affine {
  const Acc *mean, *scale, *bias;

  template <typename T, typename Step>
  Pair<Acc> distance(const T* x, int64_t j, Step step) const {
    return step.load(x + j) - step.load(mean + j);
  }
  template <typename Step>
  Pair<Acc> at(const Pair<Acc>& distance, int64_t j, Step step) const {
    return fused(distance, step.load(scale + j), step.load(bias + j));
  }
};

template <typename Args, typename Acc = float>
Affine<Acc> affine_of(const Args& args) {
  return {static_cast<const Acc*>(args.mean), static_cast<const Acc*>(args.scale),
          static_cast<const Acc*>(args.bias)};
}

template <typename T>
struct ApplyRow {
  using Acc = acc_t<T>;
  const BatchNormApplyArgs& args;
  const Affine<Acc> affine = affine_of<BatchNormApplyArgs, Acc>(args);
  const int64_t channels = args.shape.channels;

  template <bool kResidual, bool kRelu, typename Step>
  Pair<Acc> value(int64_t row, int64_t j, Step step) const {
    const int64_t at = row * channels;
    auto z = affine.at(affine.distance(static_cast<const T*>(args.x) + at, j, step), j, step);
    if constexpr (kResidual) {
      z = z + step.load(static_cast<const T*>(args.residual) + at + j);
    }
    if constexpr (kRelu) z = relu_of(z);
    return z;
  }
};

template <typename T, typename Step, bool kResidual, bool kRelu>
void apply_tiles(const BatchNormApplyArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const ApplyRow<T> from{args};
  const int64_t channels = args.shape.channels;
  for (int64_t tile = end - 1; tile >= begin; --tile) {
    const auto range = rows_of(args.shape, tile);
    for (int64_t row = range.begin; row < range.end; ++row) {
      T* y = static_cast<T*>(args.y) + row * channels;
      for_each_step<Acc, Step>(channels, [&](int64_t j, auto step) {
        step.store_result(y + j, from.template value<kResidual, kRelu>(row, j, step));
      });
    }
  }
}

template <typename T, typename Step, bool kResidual, bool kRelu>
void apply_row_pairs(const BatchNormApplyArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const ApplyRow<T> from{args};
  const int64_t channels = args.shape.channels, width = args.shape.width;
  const auto quarter = splat(Acc(0.25));
  for (int64_t pair = end - 1; pair >= begin; --pair) {
    for (int64_t w = 0; w < width; w += 2) {
      const int64_t top = 2 * pair * width + w;
      const int64_t rows[] = {top, top + 1, top + width, top + width + 1};
      T* pooled = static_cast<T*>(args.pooled) + (pair * (width / 2) + w / 2) * channels;
      for_each_step<Acc, Step>(channels, [&](int64_t j, auto step) {
        auto sum = splat(Acc(0));
        for (const int64_t row : rows) {
          const auto z = from.template value<kResidual, kRelu>(row, j, step);
          if (args.y != nullptr) {
            step.store_result(static_cast<T*>(args.y) + row * channels + j, z);
          }
          sum = sum + z;
        }
        step.store(pooled + j, sum * quarter);
      });
    }
  }
}

template <typename T, typename Step, bool kResidual, bool kRelu>
void apply(const BatchNormApplyArgs& args, int64_t begin, int64_t end) {
  if (args.pooled == nullptr) {
    apply_tiles<T, Step, kResidual, kRelu>(args, begin, end);
  } else {
    apply_row_pairs<T, Step, kResidual, kRelu>(args, begin, end);
  }
}

// The pooled row that a row was averaged into. The number of image rows is even, so pairs of them
// do not cross from one image into the next.
inline int64_t pooled_row(int64_t row, int64_t width) {
  return (row / width / 2) * (width / 2) + row % width / 2;
}

template <typename T>
struct Source {
  const T* rows;
  bool pooled;
  int64_t width, channels;
  Pair<acc_t<T>> factor;

  Source(const BatchNormGradient& grad, const BatchNormRows& shape)
      : rows(static_cast<const T*>(grad.rows)),
        pooled(grad.pooled),
        width(shape.width),
        channels(shape.channels),
        factor(splat(acc_t<T>(grad.pooled ? 0.25 : 1.0))) {}

  const T* row(int64_t row) const {
    return rows + (pooled ? pooled_row(row, width) : row) * channels;
  }
};

enum class Mask { kNone, kFromX, kFromY };

// dz of a row, from its gradients.
template <typename T, bool kTwo, Mask kMask>
struct GradientRow {
  using Acc = acc_t<T>;
  const BatchNormSumArgs& args;
  const Affine<Acc>& affine;
  const Source<T>&grad, &other;
  const T *first, *second = nullptr, *y = nullptr;

  GradientRow(const BatchNormSumArgs& args, const Affine<Acc>& affine, const Source<T>& grad,
              const Source<T>& other, int64_t row)
      : args(args), affine(affine), grad(grad), other(other), first(grad.row(row)) {
    if constexpr (kTwo) second = other.row(row);
    if constexpr (kMask == Mask::kFromY) {
      y = static_cast<const T*>(args.y) + row * args.shape.channels;
    }
  }

  template <typename Step>
  Pair<Acc> at(const Pair<Acc>& distance, int64_t j, Step step) const {
    auto dz = step.load(first + j) * grad.factor;
    if constexpr (kTwo) dz = fused(step.load(second + j), other.factor, dz);
    if constexpr (kMask == Mask::kFromX) {
      dz = keep_where_positive(dz, affine.at(distance, j, step));
    }
    if constexpr (kMask == Mask::kFromY) dz = keep_where_positive(dz, step.load(y + j));
    return dz;
  }
};

template <typename T, bool kTwo, Mask kMask>
void sums(const BatchNormSumArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int64_t channels = args.shape.channels;
  const auto affine = affine_of<BatchNormSumArgs, Acc>(args);
  const Source<T> grad(args.grad, args.shape), other(args.other, args.shape);
  for (int64_t tile = begin; tile < end; ++tile) {
    Acc* sum = static_cast<Acc*>(args.sums) + tile * 2 * channels;
    Acc* product = sum + channels;
    std::fill_n(sum, 2 * channels, Acc(0));
    const auto range = rows_of(args.shape, tile);
    for (int64_t row = range.begin; row < range.end; ++row) {
      const T* x = static_cast<const T*>(args.x) + row * channels;
      T* residual = static_cast<T*>(args.grad_residual) + row * channels;
      const GradientRow<T, kTwo, kMask> gradient(args, affine, grad, other, row);
      for_each_step<Acc>(channels, [&](int64_t j, auto step) {
        const auto distance = affine.distance(x, j, step);
        const auto dz = gradient.at(distance, j, step);
        if (args.grad_residual != nullptr) step.store(residual + j, dz);
        step.store(sum + j, step.load(sum + j) + dz);
        step.store(product + j, fused(dz, distance, step.load(product + j)));
      });
    }
  }
}

template <typename T, typename Step, bool kTwo, Mask kMask>
void grad_x(const BatchNormGradXArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int64_t channels = args.sum.shape.channels;
  const auto affine = affine_of<BatchNormSumArgs, Acc>(args.sum);
  const Source<T> grad(args.sum.grad, args.sum.shape), other(args.sum.other, args.sum.shape);
  const Acc* slope = static_cast<const Acc*>(args.slope);
  const Acc* offset = static_cast<const Acc*>(args.offset);
  for (int64_t tile = end - 1; tile >= begin; --tile) {
    const auto range = rows_of(args.sum.shape, tile);
    for (int64_t row = range.begin; row < range.end; ++row) {
      const T* x = static_cast<const T*>(args.sum.x) + row * channels;
      T* out = static_cast<T*>(args.grad_x) + row * channels;
      const GradientRow<T, kTwo, kMask> gradient(args.sum, affine, grad, other, row);
      for_each_step<Acc, Step>(channels, [&](int64_t j, auto step) {
        const auto distance = affine.distance(x, j, step);
        const auto dz = gradient.at(distance, j, step);
        const auto centred = fused(distance, step.load(slope + j), step.load(offset + j));
        step.store_result(out + j, fused(dz, step.load(affine.scale + j), centred));
      });
    }
  }
}

template <typename Visit>
void visit_bool(bool value, const Visit& visit) {
  value ? visit(std::true_type{}) : visit(std::false_type{});
}

template <typename Visit>
void visit_step(const BatchNormRows& shape, const Visit& visit) {
  if (!shape.streams) return visit(Whole{});
  visit(Streaming{});
  finish_streaming();
}

// Calls visit(Type<T>, whether there are two gradients, the mask's origin).
template <typename Visit>
void visit_gradient(const BatchNormSumArgs& args, const Visit& visit) {
  CpuTypes::visit_any(args.shape.dtype, [&](auto type) {
    visit_bool(args.other.rows != nullptr, [&](auto two) {
      if (!args.relu) {
        visit(type, two, std::integral_constant<Mask, Mask::kNone>{});
      } else if (args.y == nullptr) {
        visit(type, two, std::integral_constant<Mask, Mask::kFromX>{});
      } else {
        visit(type, two, std::integral_constant<Mask, Mask::kFromY>{});
      }
    });
  });
}

}  // namespace

void batch_norm_moments(const BatchNormMomentArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_any(args.shape.dtype,
                      [&](auto type) { moments<typename decltype(type)::type>(args, begin, end); });
}

void batch_norm_statistics(const BatchNormStatisticsArgs& args, int64_t begin, int64_t end) {
  args.shape.dtype == DType::kFloat64 ? statistics<double>(args, begin, end)
                                      : statistics<float>(args, begin, end);
}

void batch_norm_coefficients(const BatchNormCoefficientArgs& args, int64_t begin, int64_t end) {
  args.shape.dtype == DType::kFloat64 ? coefficients<double>(args, begin, end)
                                      : coefficients<float>(args, begin, end);
}

void batch_norm_apply(const BatchNormApplyArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_any(args.shape.dtype, [&](auto type) {
    visit_bool(args.residual != nullptr, [&](auto residual) {
      visit_bool(args.relu, [&](auto relu) {
        visit_step(args.shape, [&](auto step) {
          apply<typename decltype(type)::type, decltype(step), residual(), relu()>(args, begin,
                                                                                   end);
        });
      });
    });
  });
}

void batch_norm_sums(const BatchNormSumArgs& args, int64_t begin, int64_t end) {
  visit_gradient(args, [&](auto type, auto two, auto mask) {
    sums<typename decltype(type)::type, two(), mask()>(args, begin, end);
  });
}

void batch_norm_grad_x(const BatchNormGradXArgs& args, int64_t begin, int64_t end) {
  BatchNormGradXArgs direct = args;
  if (args.sum.grad_residual != nullptr) {
    // dz is there, masked and summed.
    direct.sum.grad = {args.sum.grad_residual, false};
    direct.sum.other = {nullptr, false};
    direct.sum.relu = false;
  }
  visit_gradient(direct.sum, [&](auto type, auto two, auto mask) {
    visit_step(direct.sum.shape, [&](auto step) {
      grad_x<typename decltype(type)::type, decltype(step), two(), mask()>(direct, begin, end);
    });
  });
}

}  // namespace clipfast::CPU_CAPABILITY

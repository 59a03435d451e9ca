// The rows of the contrastive loss with ATen's vector types; compiled once per CPU capability.
#include "common/cpu_rows.h"
#include "contrastive/rows.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

using Floats = Pair<float>;

inline float& at(void* vector, int64_t i) { return static_cast<float*>(vector)[i]; }
inline float at(const void* vector, int64_t i) { return static_cast<const float*>(vector)[i]; }

template <typename X, typename W>
void prepare_rows(const PrepareArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const X* x = args.x.row<X>(row);
    float inverse_norm = 1, factor = 1, scale = 1, norm;
    if (args.normalize) {
      inverse_norm = factor = ::clipfast::CPU_CAPABILITY::inverse_norm(x, args.dim, 0.0);
      norm = inverse_norm == 0 ? 0.0f : (inverse_norm == inverse_norm ? 1.0f : inverse_norm);
      if (args.work.data != nullptr && inverse_norm > 0) {
        // Brings the norm into [1, 2): a power of two, which rounds nothing.
        const int exponent = -std::ilogb(inverse_norm) -
                             (std::ldexp(inverse_norm, -std::ilogb(inverse_norm)) != 1.0f);
        scale = std::ldexp(1.0f, -exponent);
        factor = std::ldexp(inverse_norm, exponent);
      }
    } else {
      norm = std::sqrt(sum_of_squares(x, args.dim));
    }
    at(args.inverse_norm, row) = inverse_norm;
    at(args.factor, row) = factor;
    at(args.norm, row) = norm;
    if (args.work.data == nullptr) continue;
    W* work = args.work.row<W>(row);
    const auto scales = splat(scale);
    for_each_step<float>(
        args.dim, [&](int64_t j, auto step) { step.store(work + j, step.load(x + j) * scales); });
  }
}

template <typename X>
void diagonal_rows(const DiagonalArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const X* x = args.x.row<X>(row);
    const X* y = args.y.row<X>(row);
    const auto x_inverse = splat(at(args.x_inverse_norm, row));
    const auto y_inverse = splat(at(args.y_inverse_norm, row));
    // Scaled before they are multiplied: <x, y> itself can leave the type's range.
    at(args.diagonal, row) = reduce<float>(args.dim, [&](Floats& total, int64_t j, auto step) {
      total = fused(step.load(x + j) * x_inverse, step.load(y + j) * y_inverse, total);
    });
  }
}

template <typename X>
void finish_rows(const FinishArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* grad = args.grad.row<float>(row);
    const X* x = args.x.row<X>(row);
    const X* other = args.other.row<X>(row);
    X* out = args.grad_x.row<X>(row);
    const float factor = at(args.factor, row), inverse_norm = at(args.inverse_norm, row);
    const auto inverse = splat(inverse_norm), inverse_factor = splat(factor == 0 ? 0 : 1 / factor);
    const auto pair = splat(at(args.diagonal, row));
    const auto other_inverse = splat(at(args.other_inverse_norm, row));
    const auto unit_gradient = [&](int64_t j, auto step) {
      return fused(step.load(other + j) * other_inverse, pair,
                   step.load(grad + j) * inverse_factor);
    };

    const float dot = reduce<float>(args.dim, [&](Floats& total, int64_t j, auto step) {
      total = fused(step.load(x + j) * inverse, unit_gradient(j, step), total);
    });
    at(args.dot, row) = dot;

    const auto projection = splat(args.normalize ? -dot : 0.0f);
    const auto coefficient =
        splat(at(args.coefficient, 0) * (args.normalize ? inverse_norm : 1.0f));
    for_each_step<float>(args.dim, [&](int64_t j, auto step) {
      const auto u = step.load(x + j) * inverse;
      step.store(out + j, fused(u, projection, unit_gradient(j, step)) * coefficient);
    });
  }
}

}  // namespace

void contrastive_prepare_rows(const PrepareArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_single(args.x.dtype, [&](auto x) {
    CpuTypes::visit_single(args.work.dtype, [&](auto work) {
      prepare_rows<typename decltype(x)::type, typename decltype(work)::type>(args, begin, end);
    });
  });
}

void contrastive_diagonal_rows(const DiagonalArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_single(
      args.x.dtype, [&](auto x) { diagonal_rows<typename decltype(x)::type>(args, begin, end); });
}

void contrastive_finish_rows(const FinishArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_single(
      args.x.dtype, [&](auto x) { finish_rows<typename decltype(x)::type>(args, begin, end); });
}

}  // namespace clipfast::CPU_CAPABILITY

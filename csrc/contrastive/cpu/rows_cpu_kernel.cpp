// The rows of the contrastive loss with ATen's vector types; compiled once a CPU capability.
#include "common/cpu_rows.h"
#include "contrastive/contrastive.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

using Floats = Pair<float>;

inline Floats times(const Floats& v, float factor) {
  const Vectorized<float> f(factor);
  return {v.lo * f, v.hi * f};
}

template <typename X, typename W>
void prepare_rows(const PrepareArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kStep = Floats::size();
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(args.x) + row * args.x_stride;
    float inverse_norm = 1, factor = 1, scale = 1, norm;
    if (args.normalize) {
      inverse_norm = factor = ::clipfast::CPU_CAPABILITY::inverse_norm(x, args.dim, 0.0);
      norm = inverse_norm == 0 ? 0.0f : (inverse_norm == inverse_norm ? 1.0f : inverse_norm);
      if (args.work != nullptr && inverse_norm > 0) {
        // Brings the norm into [1, 2): a power of two, which rounds nothing.
        const int exponent = -std::ilogb(inverse_norm) -
                             (std::ldexp(inverse_norm, -std::ilogb(inverse_norm)) != 1.0f);
        scale = std::ldexp(1.0f, -exponent);
        factor = std::ldexp(inverse_norm, exponent);
      }
    } else {
      norm = std::sqrt(sum_of_squares(x, args.dim));
    }
    args.inverse_norm[row] = inverse_norm;
    args.factor[row] = factor;
    args.norm[row] = norm;
    if (args.work == nullptr) continue;
    W* work = static_cast<W*>(args.work) + row * args.dim;
    int64_t j = 0;
    for (; j + kStep <= args.dim; j += kStep) {
      store_pair(work + j, times(load_pair(x + j), scale));
    }
    if (j < args.dim) {
      store_pair_tail(work + j, times(load_pair_tail(x + j, args.dim - j), scale), args.dim - j);
    }
  }
}

template <typename X>
void diagonal_rows(const DiagonalArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(args.x) + row * args.x_stride;
    const X* y = static_cast<const X*>(args.y) + row * args.y_stride;
    const float x_factor = args.x_inverse_norm[row], y_factor = args.y_inverse_norm[row];
    // Scaled before they are multiplied: <x, y> itself can leave the type's range.
    args.cosine[row] = reduce<float>(
        args.dim,
        [&](Floats& total, int64_t j) {
          add_product(total, times(load_pair(x + j), x_factor), times(load_pair(y + j), y_factor));
        },
        [&](Floats& total, int64_t j) {
          const int64_t count = args.dim - j;
          add_product(total, times(load_pair_tail(x + j, count), x_factor),
                      times(load_pair_tail(y + j, count), y_factor));
        });
  }
}

template <typename X>
void finish_rows(const FinishArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kStep = Floats::size();
  for (int64_t row = begin; row < end; ++row) {
    const float* grad = args.grad + row * args.grad_stride;
    const X* x = static_cast<const X*>(args.x) + row * args.x_stride;
    const X* other = static_cast<const X*>(args.other) + row * args.other_stride;
    X* out = static_cast<X*>(args.grad_x) + row * args.dim;
    const float inverse_norm = args.inverse_norm[row];
    const Vectorized<float> inverse_factor(args.factor[row] == 0 ? 0.0f : 1 / args.factor[row]);
    const Vectorized<float> pair(args.diagonal[row]);
    const float other_inverse_norm = args.other_inverse_norm[row];

    const auto unit_gradient = [&](const Floats& g, const Floats& o) {
      const Floats v = times(o, other_inverse_norm);
      return Floats{at::vec::fmadd(v.lo, pair, g.lo * inverse_factor),
                    at::vec::fmadd(v.hi, pair, g.hi * inverse_factor)};
    };
    const float dot = reduce<float>(
        args.dim,
        [&](Floats& total, int64_t j) {
          add_product(total, times(load_pair(x + j), inverse_norm),
                      unit_gradient(load_pair(grad + j), load_pair(other + j)));
        },
        [&](Floats& total, int64_t j) {
          const int64_t count = args.dim - j;
          add_product(
              total, times(load_pair_tail(x + j, count), inverse_norm),
              unit_gradient(load_pair_tail(grad + j, count), load_pair_tail(other + j, count)));
        });
    args.dot[row] = dot;

    const Vectorized<float> projection(args.normalize ? -dot : 0.0f);
    const float coefficient = args.coefficient * (args.normalize ? inverse_norm : 1.0f);
    const auto finished = [&](const Floats& g, const Floats& o, const Floats& v) {
      const Floats d = unit_gradient(g, o);
      const Floats u = times(v, inverse_norm);
      return times(
          Floats{at::vec::fmadd(u.lo, projection, d.lo), at::vec::fmadd(u.hi, projection, d.hi)},
          coefficient);
    };
    int64_t j = 0;
    for (; j + kStep <= args.dim; j += kStep) {
      store_pair(out + j, finished(load_pair(grad + j), load_pair(other + j), load_pair(x + j)));
    }
    if (j < args.dim) {
      const int64_t count = args.dim - j;
      store_pair_tail(out + j,
                      finished(load_pair_tail(grad + j, count), load_pair_tail(other + j, count),
                               load_pair_tail(x + j, count)),
                      count);
    }
  }
}

}  // namespace

void contrastive_prepare_rows(const PrepareArgs& args, int64_t begin, int64_t end) {
  visit_single(args.x_dtype, [&](auto x) {
    visit_single(args.work_dtype, [&](auto work) {
      prepare_rows<typename decltype(x)::type, typename decltype(work)::type>(args, begin, end);
    });
  });
}

void contrastive_diagonal_rows(const DiagonalArgs& args, int64_t begin, int64_t end) {
  visit_single(args.dtype,
               [&](auto x) { diagonal_rows<typename decltype(x)::type>(args, begin, end); });
}

void contrastive_finish_rows(const FinishArgs& args, int64_t begin, int64_t end) {
  visit_single(args.dtype,
               [&](auto x) { finish_rows<typename decltype(x)::type>(args, begin, end); });
}

}  // namespace clipfast::CPU_CAPABILITY

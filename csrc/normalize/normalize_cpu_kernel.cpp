// L2 normalisation of rows with ATen's vector types; compiled once a CPU capability.
//
// Forward reads a row from memory for its sum of squares and again, from the first-level cache, to
// scale it; torch.nn.functional.normalize sends x through memory twice and a [B, D] denominator is
// expanded in between. Backward does the same with x and grad_y, where eager autograd makes four
// [B, D] temporaries.
#include "common/cpu_rows.h"
#include "normalize.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

template <typename X, typename Y>
void forward_rows(const L2NormalizeArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<X>;
  constexpr int64_t kStep = Pair<Acc>::size();
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(args.x) + row * args.x_stride;
    Y* y = static_cast<Y*>(args.y) + row * args.dim;
    const Acc inv_norm = inverse_norm(x, args.dim, args.eps);
    static_cast<Acc*>(args.inv_norm)[row] = inv_norm;
    const Vectorized<Acc> factor(inv_norm);
    int64_t j = 0;
    for (; j + kStep <= args.dim; j += kStep) {
      const auto v = load_pair(x + j);
      store_pair(y + j, Pair<Acc>{v.lo * factor, v.hi * factor});
    }
    if (j < args.dim) {
      const auto v = load_pair_tail(x + j, args.dim - j);
      store_pair_tail(y + j, Pair<Acc>{v.lo * factor, v.hi * factor}, args.dim - j);
    }
  }
}

template <typename X, typename Y>
void backward_rows(const L2NormalizeBackwardArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<X>;
  constexpr int64_t kStep = Pair<Acc>::size();
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(args.x) + row * args.x_stride;
    const Y* grad_y = static_cast<const Y*>(args.grad_y) + row * args.grad_y_stride;
    X* grad_x = static_cast<X*>(args.grad_x) + row * args.dim;
    const Vectorized<Acc> factor(static_cast<const Acc*>(args.inv_norm)[row]);
    // x is scaled before it is multiplied: <x, grad_y> itself can leave the type's range.
    const auto unit = [&](const Pair<Acc>& v) { return Pair<Acc>{v.lo * factor, v.hi * factor}; };
    const Acc dot = reduce<Acc>(
        args.dim,
        [&](Pair<Acc>& total, int64_t j) {
          add_product(total, unit(load_pair(x + j)), load_pair(grad_y + j));
        },
        [&](Pair<Acc>& total, int64_t j) {
          const int64_t count = args.dim - j;
          add_product(total, unit(load_pair_tail(x + j, count)), load_pair_tail(grad_y + j, count));
        });
    const Vectorized<Acc> minus_dot(-dot);
    const auto project = [&](const Pair<Acc>& u, const Pair<Acc>& g) {
      return Pair<Acc>{at::vec::fmadd(u.lo, minus_dot, g.lo) * factor,
                       at::vec::fmadd(u.hi, minus_dot, g.hi) * factor};
    };
    int64_t j = 0;
    for (; j + kStep <= args.dim; j += kStep) {
      store_pair(grad_x + j, project(unit(load_pair(x + j)), load_pair(grad_y + j)));
    }
    if (j < args.dim) {
      const int64_t count = args.dim - j;
      store_pair_tail(
          grad_x + j,
          project(unit(load_pair_tail(x + j, count)), load_pair_tail(grad_y + j, count)), count);
    }
  }
}

}  // namespace

void l2_normalize_rows(const L2NormalizeArgs& args, int64_t begin, int64_t end) {
  visit_types(args.x_dtype, args.y_dtype, [&](auto x, auto y) {
    forward_rows<typename decltype(x)::type, typename decltype(y)::type>(args, begin, end);
  });
}

void l2_normalize_backward_rows(const L2NormalizeBackwardArgs& args, int64_t begin, int64_t end) {
  visit_types(args.x_dtype, args.y_dtype, [&](auto x, auto y) {
    backward_rows<typename decltype(x)::type, typename decltype(y)::type>(args, begin, end);
  });
}

}  // namespace clipfast::CPU_CAPABILITY

// L2 normalisation of rows with ATen's vector types; compiled once per CPU capability.
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
  for (int64_t row = begin; row < end; ++row) {
    const X* x = args.x.row<X>(row);
    Y* y = args.y.row<Y>(row);
    const Acc inv_norm = inverse_norm(x, args.dim, args.eps);
    static_cast<Acc*>(args.inv_norm)[row] = inv_norm;
    const auto factor = splat(inv_norm);
    for_each_step<Acc>(args.dim,
                       [&](int64_t j, auto step) { step.store(y + j, step.load(x + j) * factor); });
  }
}

template <typename X, typename Y>
void backward_rows(const L2NormalizeBackwardArgs& args, int64_t begin, int64_t end) {
  using Acc = acc_t<X>;
  for (int64_t row = begin; row < end; ++row) {
    const X* x = args.x.row<X>(row);
    const Y* grad_y = args.grad_y.row<Y>(row);
    X* grad_x = args.grad_x.row<X>(row);
    const auto factor = splat(static_cast<const Acc*>(args.inv_norm)[row]);
    // x is scaled before it is multiplied: <x, grad_y> itself can leave the type's range.
    const Acc dot = reduce<Acc>(args.dim, [&](Pair<Acc>& total, int64_t j, auto step) {
      total = fused(step.load(x + j) * factor, step.load(grad_y + j), total);
    });
    const auto minus_dot = splat(-dot);
    for_each_step<Acc>(args.dim, [&](int64_t j, auto step) {
      const auto u = step.load(x + j) * factor;
      step.store(grad_x + j, fused(u, minus_dot, step.load(grad_y + j)) * factor);
    });
  }
}

}  // namespace

void l2_normalize_rows(const L2NormalizeArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_pair(args.x.dtype, args.y.dtype, [&](auto x, auto y) {
    forward_rows<typename decltype(x)::type, typename decltype(y)::type>(args, begin, end);
  });
}

void l2_normalize_backward_rows(const L2NormalizeBackwardArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_pair(args.x.dtype, args.grad_y.dtype, [&](auto x, auto y) {
    backward_rows<typename decltype(x)::type, typename decltype(y)::type>(args, begin, end);
  });
}

}  // namespace clipfast::CPU_CAPABILITY

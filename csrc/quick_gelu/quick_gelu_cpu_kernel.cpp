// QuickGELU with ATen's vector types; compiled once per CPU capability.
#include "quick_gelu.h"

#include "common/cpu_pair.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

// Where 1.702 x is below -88, exp overflows to infinity and the sigmoid is the 0 it rounds to.
template <typename Acc>
inline Vectorized<Acc> sigmoid(const Vectorized<Acc>& x) {
  const Vectorized<Acc> one(Acc(1)), minus_slope(Acc(-kSlope));
  return one / (one + (x * minus_slope).exp());
}

template <typename Acc>
inline Vectorized<Acc> forward(const Vectorized<Acc>& x) {
  return x * sigmoid(x);
}

template <typename Acc>
inline Vectorized<Acc> backward(const Vectorized<Acc>& grad_y, const Vectorized<Acc>& x) {
  const Vectorized<Acc> one(Acc(1)), slope(Acc{kSlope});
  const auto s = sigmoid(x);
  return grad_y * s * at::vec::fmadd(slope * x, one - s, one);
}

template <typename T>
void elements(const QuickGeluArgs& args, int64_t begin, int64_t end) {
  const T* grad_y = static_cast<const T*>(args.grad_y);
  const T* x = static_cast<const T*>(args.x) + begin;
  T* out = static_cast<T*>(args.out) + begin;
  for_each_step<acc_t<T>>(end - begin, [&](int64_t i, auto step) {
    const auto v = step.load(x + i);
    if (grad_y == nullptr) {
      step.store(out + i, {forward(v.lo), forward(v.hi)});
    } else {
      const auto g = step.load(grad_y + begin + i);
      step.store(out + i, {backward(g.lo, v.lo), backward(g.hi, v.hi)});
    }
  });
}

}  // namespace

void quick_gelu_elements(const QuickGeluArgs& args, int64_t begin, int64_t end) {
  CpuTypes::visit_any(
      args.dtype, [&](auto type) { elements<typename decltype(type)::type>(args, begin, end); });
}

}  // namespace clipfast::CPU_CAPABILITY

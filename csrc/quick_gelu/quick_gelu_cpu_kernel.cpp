// QuickGELU with ATen's vector types; compiled once a CPU capability.
#include "quick_gelu.h"

#include "common/cpu_rows.h"

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
  constexpr int64_t kStep = Pair<acc_t<T>>::size();
  const T* grad_y = static_cast<const T*>(args.grad_y);
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out);
  const auto visit = [&](const auto& load, const auto& store) {
    const auto v = load(x);
    if (grad_y == nullptr) {
      store({forward(v.lo), forward(v.hi)});
    } else {
      const auto g = load(grad_y);
      store({backward(g.lo, v.lo), backward(g.hi, v.hi)});
    }
  };
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) {
    visit([i](const T* p) { return load_pair(p + i); },
          [i, out](const Pair<acc_t<T>>& v) { store_pair(out + i, v); });
  }
  if (i < end) {
    const int64_t count = end - i;
    visit([i, count](const T* p) { return load_pair_tail(p + i, count); },
          [i, count, out](const Pair<acc_t<T>>& v) { store_pair_tail(out + i, v, count); });
  }
}

}  // namespace

void quick_gelu_elements(const QuickGeluArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::kFloat64) return elements<double>(args, begin, end);
  visit_single(args.dtype,
               [&](auto type) { elements<typename decltype(type)::type>(args, begin, end); });
}

}  // namespace clipfast::CPU_CAPABILITY

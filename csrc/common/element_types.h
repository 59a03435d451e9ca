// From a DType to a compile-time type, for CPU and CUDA kernels, whose 16-bit types differ.
#pragma once

#include <type_traits>

#include "common/scalar_type.h"

namespace clipfast {

// What sums and products of T are held in.
template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct Type {
  using type = T;
};

// Each function calls its visitor once, with one or two values of Type<T>.
template <typename Half, typename BFloat16>
struct ElementTypes {
  // Any type but float64.
  template <typename Visit>
  static void visit_single(DType type, const Visit& visit) {
    switch (type) {
      case DType::kFloat16:
        return visit(Type<Half>{});
      case DType::kBFloat16:
        return visit(Type<BFloat16>{});
      default:
        return visit(Type<float>{});
    }
  }

  template <typename Visit>
  static void visit_any(DType type, const Visit& visit) {
    if (type == DType::kFloat64) return visit(Type<double>{});
    visit_single(type, visit);
  }

  // The caller has checked that float64 comes in pairs.
  template <typename Visit>
  static void visit_pair(DType x, DType y, const Visit& visit) {
    if (x == DType::kFloat64) return visit(Type<double>{}, Type<double>{});
    visit_single(
        x, [&](auto x_type) { visit_single(y, [&](auto y_type) { visit(x_type, y_type); }); });
  }
};

}  // namespace clipfast

#include "common/brgemm.h"

#include <exception>

#include "common/cpu_dispatch.h"

namespace clipfast {

#ifdef CLIPFAST_HAS_BRGEMM

namespace {

// oneDNN refuses a type that the processor has no instructions for by throwing.
template <typename T>
bool can_multiply() {
  const T one[4] = {T(1), T(1), T(1), T(1)};
  float product[4] = {};
  try {
    multiply<T>(2, 2, 2, one, 2, one, 2, product, 2, false);
    release_brgemm<T>();
  } catch (const std::exception&) {
    return false;
  }
  return product[0] == 2.0f && product[3] == 2.0f;
}

}  // namespace

bool has_brgemm(at::ScalarType type) {
  static const bool has_single = can_multiply<float>();
  // Without the instructions oneDNN emulates them, slower than float32.
  static const bool has_half = __builtin_cpu_supports("avx512bf16") && can_multiply<at::BFloat16>();
  if (cpu_capability() != CpuCapability::kAvx512) return false;
  return type == at::kFloat ? has_single : type == at::kBFloat16 && has_half;
}

#else

bool has_brgemm(at::ScalarType) { return false; }

#endif

}  // namespace clipfast

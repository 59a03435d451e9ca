// Powers of two with ATen's vector types. For `*_cpu_kernel.cpp` files only, which are compiled
// once per capability.
#pragma once

#include "common/cpu_pair.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

// 2^t to 1.4 units in the last place, zero below 2^-126. t = n + r: a polynomial for 2^r on
// [-1/2, 1/2], and n added to its exponent. Its coefficients are the least-squares ones reweighted
// until the relative error is level (1.9e-9).
inline Vectorized<float> exp2(const Vectorized<float>& t_in) {
  using Vec = Vectorized<float>;
  using Bits = Vectorized<int32_t>;
  const Vec t = at::vec::minimum(t_in, Vec(128.0f));
  const Vec n = t.round();
  const Vec r = t - n;
  Vec p(0x1.41d334p-13f);
  p = at::vec::fmadd(p, r, Vec(0x1.5f456ap-10f));
  p = at::vec::fmadd(p, r, Vec(0x1.3b2dbcp-7f));
  p = at::vec::fmadd(p, r, Vec(0x1.c6aed4p-5f));
  p = at::vec::fmadd(p, r, Vec(0x1.ebfbdap-3f));
  p = at::vec::fmadd(p, r, Vec(0x1.62e430p-1f));
  p = at::vec::fmadd(p, r, Vec(1.0f));
  const Bits exponent = at::vec::convert_to_int_of_same_size(n) << Bits(23);
  const Vec result = at::vec::cast<float>(at::vec::cast<int32_t>(p) + exponent);
  return Vec::blendv(result, Vec(0.0f), t < Vec(-126.0f));
}

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY

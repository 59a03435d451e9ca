// The norm of a row on CUDA, whatever the size of its elements.
#pragma once

#include "common/cuda_rows.cuh"

namespace clipfast {
namespace {

template <typename Acc>
struct RowNorm {
  Acc norm;
  Acc inverse;  // 1 / norm, also where norm itself overflows; unspecified for a zero row
};

// Where squares leave the accumulation type (1e30 or 1e-30 in float32): scales the row by a power
// of two, which rounds nothing, and sums again. Also for rows that are zero or not finite. Rare;
// all of a row's threads come here, or none.
template <int Threads, typename Reader, typename Acc>
__device__ RowNorm<Acc> scaled_norm(const Reader& reader, Acc* shared) {
  Acc largest = 0;
  for_each_pack(
      [&](int, const auto& pack) {
        for (const auto& v : pack.value) largest = Largest::apply(fabs(widen(v)), largest);
      },
      reader);
  largest = row_reduce<Threads, Largest>(largest, shared);
  if (largest != largest) return {largest, largest};
  if (largest == 0 || largest > Limits<Acc>::kMax) return {largest, 0};
  constexpr int kLimit = Limits<Acc>::kMaxScale;
  const int exponent = -ilogb(largest);
  const Acc scale = ldexp(Acc(1), exponent > kLimit    ? kLimit
                                  : exponent < -kLimit ? -kLimit
                                                       : exponent);
  Acc total = 0;
  for_each_pack(
      [&](int, const auto& pack) {
        for (const auto& element : pack.value) {
          const Acc v = widen(element) * scale;
          total += v * v;
        }
      },
      reader);
  const Acc root = sqrt(row_reduce<Threads, Sum>(total, shared));
  return {root / scale, scale / root};
}

// All of the row's threads must call, and all get the result. `shared` as in row_reduce.
template <typename T, int N, int Threads, int Elements>
__device__ __forceinline__ RowNorm<acc_t<T>> row_norm(
    const RowReader<T, N, Threads, Elements>& reader, acc_t<T>* shared) {
  using Acc = acc_t<T>;
  Acc total = 0;
  for_each_pack(
      [&](int, const Pack<T, N>& pack) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const Acc v = widen(pack.value[k]);
          total += v * v;
        }
      },
      reader);
  total = row_reduce<Threads, Sum>(total, shared);
  if (!(total >= Limits<Acc>::kLow && total <= Limits<Acc>::kMax)) {
    return scaled_norm<Threads>(reader, shared);
  }
  const Acc norm = sqrt(total);
  return {norm, Acc(1) / norm};
}

}  // namespace
}  // namespace clipfast

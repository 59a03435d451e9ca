// The contrastive operators that work on the rows of the features: prepare, diagonal, finish.
//
// As in l2_normalize, a row belongs to one warp or to one block, and stays in registers between its
// sum and what follows from it, so each input is read from memory once and each output written
// once. finish replaces seven passes over [B, D] in plain torch. Sums have one fixed order.
#include "common/cuda_rows.cuh"
#include "contrastive_cuda.h"

namespace clipfast {
namespace {

// As in normalize_kernel.cu: 128 registers a thread.
constexpr int kMinBlocks = 2;

// diagonal and finish hold two and three rows, so half as many elements of each.
constexpr int kHeldRows = 2;

// |x_i| where squares leave the accumulation type, by way of a power of two; also for zero rows
// and for rows that are not finite. Rare; all of a row's threads come here, or none.
template <int Threads, typename Reader, typename Acc>
__device__ Acc scaled_norm(const Reader& reader, Acc* shared) {
  Acc largest = 0;
  for_each_pack(reader, [&](int, const auto& pack) {
    for (const auto& v : pack.value) largest = Largest::apply(fabs(widen(v)), largest);
  });
  largest = row_reduce<Threads, Largest>(largest, shared);
  // Zero, infinite, or NaN.
  if (!(largest > 0 && largest <= Limits<Acc>::kMax)) return largest;
  constexpr int kLimit = Limits<Acc>::kMaxScale;
  const int exponent = -ilogb(largest);
  const Acc scale = ldexp(Acc(1), exponent > kLimit    ? kLimit
                                  : exponent < -kLimit ? -kLimit
                                                       : exponent);
  Acc total = 0;
  for_each_pack(reader, [&](int, const auto& pack) {
    for (const auto& element : pack.value) {
      const Acc v = widen(element) * scale;
      total += v * v;
    }
  });
  return sqrt(row_reduce<Threads, Sum>(total, shared)) / scale;
}

// norm = |x_i|;  normalize: work = x 2^-e of norm in [1, 2), factor = 1 / |work|; else work = x
template <typename X, typename W, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks)
    prepare_kernel(const ContrastivePrepare a) {
  using Acc = acc_t<X>;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  if (row >= a.rows) return;
  const int lane = threadIdx.x % Threads;
  const RowReader<X, N, Threads, kElementsPerThread<X, N>> reader(
      static_cast<const X*>(a.x) + row * a.x_stride, static_cast<int>(a.dim), lane);

  Acc total = 0;
  for_each_pack(reader, [&](int, const Pack<X, N>& pack) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const Acc v = widen(pack.value[k]);
      total += v * v;
    }
  });
  total = row_reduce<Threads, Sum>(total, shared);
  const Acc norm = total >= Limits<Acc>::kLow && total <= Limits<Acc>::kMax
                       ? sqrt(total)
                       : scaled_norm<Threads>(reader, shared);

  const bool is_zero = norm <= Limits<Acc>::kTiny;
  Acc scale = 1;  // 2^-e
  if (a.normalize && a.work != nullptr && !is_zero && norm <= Limits<Acc>::kMax) {
    scale = ldexp(Acc(1), -ilogb(norm));
  }
  if (lane == 0) {
    const Acc inverse = is_zero ? Acc(0) : Acc(1) / norm;
    const Acc factor = is_zero ? Acc(0) : Acc(1) / (norm * scale);
    static_cast<Acc*>(a.inverse_norm)[row] = a.normalize ? inverse : Acc(1);
    static_cast<Acc*>(a.factor)[row] = a.normalize ? factor : Acc(1);
    static_cast<Acc*>(a.norm)[row] = !a.normalize ? norm : is_zero ? Acc(0) : norm * inverse;
  }
  if (a.work == nullptr) return;
  Pack<W, N>* work_row = reinterpret_cast<Pack<W, N>*>(static_cast<W*>(a.work) + row * a.dim);
  for_each_pack(reader, [&](int p, const Pack<X, N>& pack) {
    Pack<W, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.value[k] = narrow<W>(widen(pack.value[k]) * scale);
    work_row[p] = out;
  });
}

// diagonal = sum_d (x xi) (y yi)
template <typename X, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks)
    diagonal_kernel(const ContrastiveDiagonal a) {
  using Acc = acc_t<X>;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  if (row >= a.rows) return;
  const int lane = threadIdx.x % Threads;
  const int dim = static_cast<int>(a.dim);
  using Reader = RowReader<X, N, Threads, kElementsPerThread<X, N> / kHeldRows>;
  const Reader x_reader(static_cast<const X*>(a.x) + row * a.x_stride, dim, lane);
  const Reader y_reader(static_cast<const X*>(a.y) + row * a.y_stride, dim, lane);
  const Acc x_inverse = static_cast<const Acc*>(a.x_inverse_norm)[row];
  const Acc y_inverse = static_cast<const Acc*>(a.y_inverse_norm)[row];
  Acc total = 0;
  for_each_pack(x_reader, y_reader, [&](int, const Pack<X, N>& x, const Pack<X, N>& y) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      total += (widen(x.value[k]) * x_inverse) * (widen(y.value[k]) * y_inverse);
    }
  });
  total = row_reduce<Threads, Sum>(total, shared);
  if (lane == 0) static_cast<Acc*>(a.diagonal)[row] = total;
}

// u = x inverse;  dU = grad / f + diagonal other other_inverse;  dot = <u, dU>
// normalize: grad_x = coefficient (dU - u dot) inverse; else coefficient dU
template <typename X, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks)
    finish_kernel(const ContrastiveFinish a) {
  using Acc = acc_t<X>;
  constexpr int kElements = kElementsPerThread<X, N> / kHeldRows;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  if (row >= a.rows) return;
  const int lane = threadIdx.x % Threads;
  const int dim = static_cast<int>(a.dim);
  const RowReader<Acc, N, Threads, kElements> grad_reader(
      static_cast<const Acc*>(a.grad) + row * a.grad_stride, dim, lane);
  const RowReader<X, N, Threads, kElements> x_reader(static_cast<const X*>(a.x) + row * a.x_stride,
                                                     dim, lane);
  const RowReader<X, N, Threads, kElements> other_reader(
      static_cast<const X*>(a.other) + row * a.other_stride, dim, lane);
  const auto at_row = [row](const void* vector) { return static_cast<const Acc*>(vector)[row]; };
  const Acc inverse = at_row(a.inverse_norm);
  const Acc other_inverse = at_row(a.other_inverse_norm);
  const Acc factor = at_row(a.factor);
  const Acc inverse_factor = factor == 0 ? Acc(0) : Acc(1) / factor;
  const Acc diagonal = at_row(a.diagonal);
  const Acc coefficient = *static_cast<const Acc*>(a.coefficient);
  const auto grad_unit = [&](Acc grad, X other) {
    return grad * inverse_factor + diagonal * (widen(other) * other_inverse);
  };

  Acc dot = 0;
  for_each_pack(grad_reader, x_reader, other_reader,
                [&](int, const Pack<Acc, N>& grad, const Pack<X, N>& x, const Pack<X, N>& other) {
#pragma unroll
                  for (int k = 0; k < N; ++k) {
                    const Acc u = widen(x.value[k]) * inverse;
                    dot += u * grad_unit(grad.value[k], other.value[k]);
                  }
                });
  dot = row_reduce<Threads, Sum>(dot, shared);
  if (lane == 0) static_cast<Acc*>(a.dot)[row] = dot;

  Pack<X, N>* out_row = reinterpret_cast<Pack<X, N>*>(static_cast<X*>(a.grad_x) + row * a.dim);
  for_each_pack(grad_reader, x_reader, other_reader,
                [&](int p, const Pack<Acc, N>& grad, const Pack<X, N>& x, const Pack<X, N>& other) {
                  Pack<X, N> out;
#pragma unroll
                  for (int k = 0; k < N; ++k) {
                    Acc v = grad_unit(grad.value[k], other.value[k]);
                    if (a.normalize) v = (v - widen(x.value[k]) * inverse * dot) * inverse;
                    out.value[k] = narrow<X>(coefficient * v);
                  }
                  out_row[p] = out;
                });
}

template <typename Visit>
void visit_type(DType type, const Visit& visit) {
  if (type == DType::kFloat64) return visit(Type<double>{});
  visit_single(type, visit);
}

}  // namespace

const char* launch_prepare(const ContrastivePrepare& a, void* stream) {
  if (a.rows == 0) return nullptr;
  visit_types(a.x_dtype, a.work_dtype, [&](auto x_type, auto work_type) {
    using X = typename decltype(x_type)::type;
    using W = typename decltype(work_type)::type;
    constexpr int kPack = pack_size<X, W>();
    const bool packed =
        in_packs<X, kPack>(a.x, a.x_stride, a.dim) && in_packs<W, kPack>(a.work, a.dim, a.dim);
    pick_kernel<X, kPack>(packed, a.dim, [&](auto pack, auto threads) {
      constexpr int kN = decltype(pack)::value;
      constexpr int kThreads = decltype(threads)::value;
      prepare_kernel<X, W, kN, kThreads>
          <<<blocks_for<kThreads>(a.rows), kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(
              a);
    });
  });
  return launch_error();
}

const char* launch_diagonal(const ContrastiveDiagonal& a, void* stream) {
  if (a.rows == 0) return nullptr;
  visit_type(a.dtype, [&](auto x_type) {
    using X = typename decltype(x_type)::type;
    constexpr int kPack = pack_size<X, X>();
    const bool packed =
        in_packs<X, kPack>(a.x, a.x_stride, a.dim) && in_packs<X, kPack>(a.y, a.y_stride, a.dim);
    pick_kernel<X, kPack>(packed, kHeldRows * a.dim, [&](auto pack, auto threads) {
      constexpr int kN = decltype(pack)::value;
      constexpr int kThreads = decltype(threads)::value;
      diagonal_kernel<X, kN, kThreads>
          <<<blocks_for<kThreads>(a.rows), kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(
              a);
    });
  });
  return launch_error();
}

const char* launch_finish(const ContrastiveFinish& a, void* stream) {
  if (a.rows == 0) return nullptr;
  visit_type(a.dtype, [&](auto x_type) {
    using X = typename decltype(x_type)::type;
    using Acc = acc_t<X>;
    constexpr int kPack = pack_size<X, Acc>();
    const bool packed = in_packs<Acc, kPack>(a.grad, a.grad_stride, a.dim) &&
                        in_packs<X, kPack>(a.x, a.x_stride, a.dim) &&
                        in_packs<X, kPack>(a.other, a.other_stride, a.dim) &&
                        in_packs<X, kPack>(a.grad_x, a.dim, a.dim);
    pick_kernel<X, kPack>(packed, kHeldRows * a.dim, [&](auto pack, auto threads) {
      constexpr int kN = decltype(pack)::value;
      constexpr int kThreads = decltype(threads)::value;
      finish_kernel<X, kN, kThreads>
          <<<blocks_for<kThreads>(a.rows), kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(
              a);
    });
  });
  return launch_error();
}

}  // namespace clipfast

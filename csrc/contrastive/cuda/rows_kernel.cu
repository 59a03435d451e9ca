// The contrastive operators that work on the rows of the features: prepare, diagonal, finish.
//
// As in l2_normalize, a row belongs to one warp or to one block, and stays in registers between its
// sum and what follows from it, so each input is read from memory once and each output written
// once. finish replaces seven passes over [B, D] in plain torch. Sums have one fixed order.
#include "common/cuda_norm.cuh"
#include "contrastive/rows.h"

namespace clipfast {
namespace {

// diagonal and finish hold two and three rows, so half as many elements of each.
constexpr int kHeldRows = 2;

// norm = |x_i|;  normalize: work = x 2^-e of norm in [1, 2), factor = 1 / |work|; else work = x
template <typename X, typename W, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks) prepare_kernel(const PrepareArgs a) {
  using Acc = acc_t<X>;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  if (row >= a.rows) return;
  const int lane = threadIdx.x % Threads;
  const RowReader<X, N, Threads, kElementsPerThread<X, N>> reader(a.x.row<X>(row),
                                                                  static_cast<int>(a.dim), lane);

  const Acc norm = row_norm(reader, shared).norm;
  const bool is_zero = norm <= Limits<Acc>::kTiny;
  Acc scale = 1;  // 2^-e
  if (a.normalize && a.work.data != nullptr && !is_zero && norm <= Limits<Acc>::kMax) {
    scale = ldexp(Acc(1), -ilogb(norm));
  }
  if (lane == 0) {
    const Acc inverse = is_zero ? Acc(0) : Acc(1) / norm;
    const Acc factor = is_zero ? Acc(0) : Acc(1) / (norm * scale);
    static_cast<Acc*>(a.inverse_norm)[row] = a.normalize ? inverse : Acc(1);
    static_cast<Acc*>(a.factor)[row] = a.normalize ? factor : Acc(1);
    static_cast<Acc*>(a.norm)[row] = !a.normalize ? norm : is_zero ? Acc(0) : norm * inverse;
  }
  if (a.work.data == nullptr) return;
  Pack<W, N>* work_row = reinterpret_cast<Pack<W, N>*>(a.work.row<W>(row));
  for_each_pack(
      [&](int p, const Pack<X, N>& pack) {
        Pack<W, N> out;
#pragma unroll
        for (int k = 0; k < N; ++k) out.value[k] = narrow<W>(widen(pack.value[k]) * scale);
        work_row[p] = out;
      },
      reader);
}

// diagonal = sum_d (x xi) (y yi)
template <typename X, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks) diagonal_kernel(const DiagonalArgs a) {
  using Acc = acc_t<X>;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  if (row >= a.rows) return;
  const int lane = threadIdx.x % Threads;
  const int dim = static_cast<int>(a.dim);
  using Reader = RowReader<X, N, Threads, kElementsPerThread<X, N> / kHeldRows>;
  const Reader x_reader(a.x.row<X>(row), dim, lane);
  const Reader y_reader(a.y.row<X>(row), dim, lane);
  const Acc x_inverse = static_cast<const Acc*>(a.x_inverse_norm)[row];
  const Acc y_inverse = static_cast<const Acc*>(a.y_inverse_norm)[row];
  Acc total = 0;
  for_each_pack(
      [&](int, const Pack<X, N>& x, const Pack<X, N>& y) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          total += (widen(x.value[k]) * x_inverse) * (widen(y.value[k]) * y_inverse);
        }
      },
      x_reader, y_reader);
  total = row_reduce<Threads, Sum>(total, shared);
  if (lane == 0) static_cast<Acc*>(a.diagonal)[row] = total;
}

// u = x inverse;  dU = grad / f + diagonal other other_inverse;  dot = <u, dU>
// normalize: grad_x = coefficient (dU - u dot) inverse; else coefficient dU
template <typename X, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks) finish_kernel(const FinishArgs a) {
  using Acc = acc_t<X>;
  constexpr int kElements = kElementsPerThread<X, N> / kHeldRows;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  if (row >= a.rows) return;
  const int lane = threadIdx.x % Threads;
  const int dim = static_cast<int>(a.dim);
  const RowReader<Acc, N, Threads, kElements> grad_reader(a.grad.row<Acc>(row), dim, lane);
  const RowReader<X, N, Threads, kElements> x_reader(a.x.row<X>(row), dim, lane);
  const RowReader<X, N, Threads, kElements> other_reader(a.other.row<X>(row), dim, lane);
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
  for_each_pack(
      [&](int, const Pack<Acc, N>& grad, const Pack<X, N>& x, const Pack<X, N>& other) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const Acc u = widen(x.value[k]) * inverse;
          dot += u * grad_unit(grad.value[k], other.value[k]);
        }
      },
      grad_reader, x_reader, other_reader);
  dot = row_reduce<Threads, Sum>(dot, shared);
  if (lane == 0) static_cast<Acc*>(a.dot)[row] = dot;

  Pack<X, N>* out_row = reinterpret_cast<Pack<X, N>*>(a.grad_x.row<X>(row));
  for_each_pack(
      [&](int p, const Pack<Acc, N>& grad, const Pack<X, N>& x, const Pack<X, N>& other) {
        Pack<X, N> out;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          Acc v = grad_unit(grad.value[k], other.value[k]);
          if (a.normalize) v = (v - widen(x.value[k]) * inverse * dot) * inverse;
          out.value[k] = narrow<X>(coefficient * v);
        }
        out_row[p] = out;
      },
      grad_reader, x_reader, other_reader);
}

}  // namespace

const char* launch_prepare(const PrepareArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  CudaTypes::visit_pair(a.x.dtype, a.work.dtype, [&](auto x_type, auto work_type) {
    using X = typename decltype(x_type)::type;
    using W = typename decltype(work_type)::type;
    constexpr int kPack = pack_size<X, W>();
    const bool packed = in_packs<X, kPack>(a.x, a.dim) && in_packs<W, kPack>(a.work, a.dim);
    pick_kernel<X, kPack>(packed, a.rows, a.dim, [&](auto shape, unsigned blocks) {
      using Shape = decltype(shape);
      prepare_kernel<X, W, Shape::kPack, Shape::kThreads>
          <<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
    });
  });
  return launch_error();
}

const char* launch_diagonal(const DiagonalArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  CudaTypes::visit_any(a.x.dtype, [&](auto x_type) {
    using X = typename decltype(x_type)::type;
    constexpr int kPack = pack_size<X, X>();
    const bool packed = in_packs<X, kPack>(a.x, a.dim) && in_packs<X, kPack>(a.y, a.dim);
    pick_kernel<X, kPack>(packed, a.rows, kHeldRows * a.dim, [&](auto shape, unsigned blocks) {
      using Shape = decltype(shape);
      diagonal_kernel<X, Shape::kPack, Shape::kThreads>
          <<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
    });
  });
  return launch_error();
}

const char* launch_finish(const FinishArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  CudaTypes::visit_any(a.x.dtype, [&](auto x_type) {
    using X = typename decltype(x_type)::type;
    using Acc = acc_t<X>;
    constexpr int kPack = pack_size<X, Acc>();
    const bool packed = in_packs<Acc, kPack>(a.grad, a.dim) && in_packs<X, kPack>(a.x, a.dim) &&
                        in_packs<X, kPack>(a.other, a.dim) && in_packs<X, kPack>(a.grad_x, a.dim);
    pick_kernel<X, kPack>(packed, a.rows, kHeldRows * a.dim, [&](auto shape, unsigned blocks) {
      using Shape = decltype(shape);
      finish_kernel<X, Shape::kPack, Shape::kThreads>
          <<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
    });
  });
  return launch_error();
}

}  // namespace clipfast

// L2 normalisation of rows on CUDA: kernels and their launches, free of torch headers.
//
// A row belongs to one warp (D up to 1,024; 512 for float64) or to one block of 256 threads. Its
// first 32 elements per thread (16 for float64) stay in registers between the sum and the scaling,
// so rows of up to 8,192 (4,096) elements are read from memory exactly once; what lies beyond is
// read again, from the caches. Every sum has one fixed order, so results are the same bits on every
// run.
#include "common/cuda_norm.cuh"
#include "normalize.h"

namespace clipfast {
namespace {

// inv_norm = |x| > threshold ? 1 / |x| : 0;  y = x * inv_norm
template <typename X, typename Y, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks)
    l2_normalize_kernel(const X* __restrict__ x,              // [B, D], rows x_stride apart
                        Y* __restrict__ y,                    // [B, D], contiguous
                        acc_t<X>* __restrict__ inv_norm_out,  // [B]
                        int64_t x_stride, int64_t rows, int dim, acc_t<X> threshold) {
  using Acc = acc_t<X>;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  // Whole warps (or whole blocks) leave together, so no later reduction waits for them.
  if (row >= rows) return;
  const int lane = threadIdx.x % Threads;
  const RowReader<X, N, Threads, kElementsPerThread<X, N>> reader(x + row * x_stride, dim, lane);

  const RowNorm<Acc> norm = row_norm(reader, shared);
  const Acc inv_norm = norm.norm <= threshold ? Acc(0) : norm.inverse;
  if (lane == 0) inv_norm_out[row] = inv_norm;

  Pack<Y, N>* y_row = reinterpret_cast<Pack<Y, N>*>(y + row * dim);
  for_each_pack(
      [&](int p, const Pack<X, N>& pack) {
        Pack<Y, N> out;
#pragma unroll
        for (int k = 0; k < N; ++k) out.value[k] = narrow<Y>(widen(pack.value[k]) * inv_norm);
        y_row[p] = out;
      },
      reader);
}

// u = x * inv_norm;  grad_x = (grad_y - u <u, grad_y>) * inv_norm
template <typename X, typename Y, int N, int Threads>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks)
    l2_normalize_backward_kernel(const Y* __restrict__ grad_y,  // [B, D], rows grad_y_stride apart
                                 const X* __restrict__ x,       // [B, D], rows x_stride apart
                                 const acc_t<X>* __restrict__ inv_norm_in,  // [B]
                                 X* __restrict__ grad_x,                    // [B, D], contiguous
                                 int64_t grad_y_stride, int64_t x_stride, int64_t rows, int dim) {
  using Acc = acc_t<X>;
  constexpr int kElements = kElementsPerThread<X, N>;
  __shared__ Acc shared[kBlockThreads / kWarp];
  const int64_t row = my_row<Threads>();
  if (row >= rows) return;
  const int lane = threadIdx.x % Threads;
  const RowReader<X, N, Threads, kElements> x_reader(x + row * x_stride, dim, lane);
  const RowReader<Y, N, Threads, kElements> grad_reader(grad_y + row * grad_y_stride, dim, lane);
  const Acc inv_norm = inv_norm_in[row];

  // x is scaled before it is multiplied: <x, grad_y> itself can leave the type's range.
  Acc dot = 0;
  for_each_pack(
      [&](int, const Pack<X, N>& x_pack, const Pack<Y, N>& grad_pack) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          dot += widen(x_pack.value[k]) * inv_norm * widen(grad_pack.value[k]);
        }
      },
      x_reader, grad_reader);
  dot = row_reduce<Threads, Sum>(dot, shared);

  Pack<X, N>* out_row = reinterpret_cast<Pack<X, N>*>(grad_x + row * dim);
  for_each_pack(
      [&](int p, const Pack<X, N>& x_pack, const Pack<Y, N>& grad_pack) {
        Pack<X, N> out;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const Acc u = widen(x_pack.value[k]) * inv_norm;
          out.value[k] = narrow<X>((widen(grad_pack.value[k]) - u * dot) * inv_norm);
        }
        out_row[p] = out;
      },
      x_reader, grad_reader);
}

}  // namespace

const char* launch_l2_normalize(const L2NormalizeArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  CudaTypes::visit_pair(a.x.dtype, a.y.dtype, [&](auto x_type, auto y_type) {
    using X = typename decltype(x_type)::type;
    using Y = typename decltype(y_type)::type;
    using Acc = acc_t<X>;
    constexpr int kPack = pack_size<X, Y>();
    const Acc eps = static_cast<Acc>(a.eps);
    const Acc threshold = eps > Limits<Acc>::kTiny ? eps : Limits<Acc>::kTiny;
    const bool packed = in_packs<X, kPack>(a.x, a.dim) && in_packs<Y, kPack>(a.y, a.dim);
    pick_kernel<X, kPack>(packed, a.rows, a.dim, [&](auto shape, unsigned blocks) {
      using Shape = decltype(shape);
      l2_normalize_kernel<X, Y, Shape::kPack, Shape::kThreads>
          <<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(
              a.x.row<X>(0), a.y.row<Y>(0), static_cast<Acc*>(a.inv_norm), a.x.stride, a.rows,
              static_cast<int>(a.dim), threshold);
    });
  });
  return launch_error();
}

const char* launch_l2_normalize_backward(const L2NormalizeBackwardArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  CudaTypes::visit_pair(a.x.dtype, a.grad_y.dtype, [&](auto x_type, auto y_type) {
    using X = typename decltype(x_type)::type;
    using Y = typename decltype(y_type)::type;
    using Acc = acc_t<X>;
    constexpr int kPack = pack_size<X, Y>();
    const bool packed = in_packs<Y, kPack>(a.grad_y, a.dim) && in_packs<X, kPack>(a.x, a.dim) &&
                        in_packs<X, kPack>(a.grad_x, a.dim);
    pick_kernel<X, kPack>(packed, a.rows, a.dim, [&](auto shape, unsigned blocks) {
      using Shape = decltype(shape);
      l2_normalize_backward_kernel<X, Y, Shape::kPack, Shape::kThreads>
          <<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(
              a.grad_y.row<Y>(0), a.x.row<X>(0), static_cast<const Acc*>(a.inv_norm),
              a.grad_x.row<X>(0), a.grad_y.stride, a.x.stride, a.rows, static_cast<int>(a.dim));
    });
  });
  return launch_error();
}

}  // namespace clipfast

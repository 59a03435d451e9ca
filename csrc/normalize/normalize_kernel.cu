// L2 normalisation of rows on CUDA: kernels and their launches, free of torch headers.
//
// A row belongs to one warp (D up to 1,024; 512 for float64) or to one block of 256 threads. Its
// first 32 elements a thread (16 for float64) stay in registers between the sum and the scaling, so
// rows of up to 8,192 (4,096) elements are read from memory exactly once; what lies beyond is read
// again, from the caches. Every sum has one fixed order, so results are the same bits on every run.
#include "common/cuda_rows.cuh"
#include "normalize.h"

namespace clipfast {
namespace {

// Blocks that must fit on a multiprocessor together, which leaves 128 registers a thread. Without
// it ptxas spills a register or two to reach an occupancy that a memory-bound kernel with this many
// bytes in flight (16 to 64 KiB a block) does not need.
constexpr int kMinBlocks = 2;

// Norms whose squares leave the accumulation type (1e30 or 1e-30 in float32, or a zero row): scale
// the row by a power of two, which rounds nothing, and sum again. Rare; the branch to it is taken
// by all of a row's threads or none.
template <int Threads, typename Reader, typename Acc>
__device__ Acc scaled_inverse_norm(const Reader& reader, Acc threshold, Acc* shared) {
  Acc largest = 0;
  for_each_pack(reader, [&](int, const auto& pack) {
    for (const auto& v : pack.value) largest = Largest::apply(fabs(widen(v)), largest);
  });
  largest = row_reduce<Threads, Largest>(largest, shared);
  if (largest != largest) return largest;
  if (largest == 0 || largest > Limits<Acc>::kMax) return 0;
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
  const Acc root = sqrt(row_reduce<Threads, Sum>(total, shared));
  return root / scale <= threshold ? Acc(0) : scale / root;
}

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

  Acc total = 0;
  for_each_pack(reader, [&](int, const Pack<X, N>& pack) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const Acc v = widen(pack.value[k]);
      total += v * v;
    }
  });
  total = row_reduce<Threads, Sum>(total, shared);

  Acc inv_norm;
  if (total >= Limits<Acc>::kLow && total <= Limits<Acc>::kMax) {
    const Acc norm = sqrt(total);
    inv_norm = norm <= threshold ? Acc(0) : Acc(1) / norm;
  } else {
    inv_norm = scaled_inverse_norm<Threads>(reader, threshold, shared);
  }
  if (lane == 0) inv_norm_out[row] = inv_norm;

  Pack<Y, N>* y_row = reinterpret_cast<Pack<Y, N>*>(y + row * dim);
  for_each_pack(reader, [&](int p, const Pack<X, N>& pack) {
    Pack<Y, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.value[k] = narrow<Y>(widen(pack.value[k]) * inv_norm);
    y_row[p] = out;
  });
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
  for_each_pack(x_reader, grad_reader,
                [&](int, const Pack<X, N>& x_pack, const Pack<Y, N>& grad_pack) {
#pragma unroll
                  for (int k = 0; k < N; ++k) {
                    dot += widen(x_pack.value[k]) * inv_norm * widen(grad_pack.value[k]);
                  }
                });
  dot = row_reduce<Threads, Sum>(dot, shared);

  Pack<X, N>* out_row = reinterpret_cast<Pack<X, N>*>(grad_x + row * dim);
  for_each_pack(x_reader, grad_reader,
                [&](int p, const Pack<X, N>& x_pack, const Pack<Y, N>& grad_pack) {
                  Pack<X, N> out;
#pragma unroll
                  for (int k = 0; k < N; ++k) {
                    const Acc u = widen(x_pack.value[k]) * inv_norm;
                    out.value[k] = narrow<X>((widen(grad_pack.value[k]) - u * dot) * inv_norm);
                  }
                  out_row[p] = out;
                });
}

}  // namespace

const char* launch_l2_normalize(const L2NormalizeArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  visit_types(a.x_dtype, a.y_dtype, [&](auto x_type, auto y_type) {
    using X = typename decltype(x_type)::type;
    using Y = typename decltype(y_type)::type;
    using Acc = acc_t<X>;
    constexpr int kPack = pack_size<X, Y>();
    const Acc eps = static_cast<Acc>(a.eps);
    const Acc threshold = eps > Limits<Acc>::kTiny ? eps : Limits<Acc>::kTiny;
    const bool packed =
        in_packs<X, kPack>(a.x, a.x_stride, a.dim) && in_packs<Y, kPack>(a.y, a.dim, a.dim);
    pick_kernel<X, kPack>(packed, a.dim, [&](auto pack, auto threads) {
      constexpr int kN = decltype(pack)::value;
      constexpr int kThreads = decltype(threads)::value;
      l2_normalize_kernel<X, Y, kN, kThreads>
          <<<blocks_for<kThreads>(a.rows), kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(
              static_cast<const X*>(a.x), static_cast<Y*>(a.y), static_cast<Acc*>(a.inv_norm),
              a.x_stride, a.rows, static_cast<int>(a.dim), threshold);
    });
  });
  return launch_error();
}

const char* launch_l2_normalize_backward(const L2NormalizeBackwardArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  visit_types(a.x_dtype, a.y_dtype, [&](auto x_type, auto y_type) {
    using X = typename decltype(x_type)::type;
    using Y = typename decltype(y_type)::type;
    using Acc = acc_t<X>;
    constexpr int kPack = pack_size<X, Y>();
    const bool packed = in_packs<Y, kPack>(a.grad_y, a.grad_y_stride, a.dim) &&
                        in_packs<X, kPack>(a.x, a.x_stride, a.dim) &&
                        in_packs<X, kPack>(a.grad_x, a.dim, a.dim);
    pick_kernel<X, kPack>(packed, a.dim, [&](auto pack, auto threads) {
      constexpr int kN = decltype(pack)::value;
      constexpr int kThreads = decltype(threads)::value;
      l2_normalize_backward_kernel<X, Y, kN, kThreads>
          <<<blocks_for<kThreads>(a.rows), kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(
              static_cast<const Y*>(a.grad_y), static_cast<const X*>(a.x),
              static_cast<const Acc*>(a.inv_norm), static_cast<X*>(a.grad_x), a.grad_y_stride,
              a.x_stride, a.rows, static_cast<int>(a.dim));
    });
  });
  return launch_error();
}

}  // namespace clipfast

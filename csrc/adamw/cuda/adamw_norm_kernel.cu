// The 2-norm over a list of gradients on CUDA: kernels and their launches, free of torch headers.
//
// A thread block adds up one tile of 16,384 elements in double, then one thread block adds up the
// tiles. Every sum has one order, which depends on the list alone: no atomics, the same bits on
// every run and device. Gradients are read once.
#include "tensor_lists.cuh"

namespace clipfast::adamw {
namespace {

struct NormArguments {
  double* partial;  // [tiles]
  List<GradSlot, kFitting<GradSlot, double*>> list;
};
static_assert(sizeof(NormArguments) <= kArgumentBytes, "too long for a launch");

// partial[tile] = sum of the squares of the tile's elements. A thread adds up the same ones in the
// same order whether they come as packs or alone.
__global__ void __launch_bounds__(kBlockThreads)
    squares_kernel(const NormArguments __grid_constant__ args) {
  __shared__ double shared[kWarps];
  const int item = find_item(args.list, blockIdx.x);
  const GradSlot& t = args.list.item[item];
  const bool is_wide = t.dtype == DType::kFloat32, is_aligned = are_aligned(t.grad);
  const int64_t begin = int64_t{blockIdx.x - args.list.first_chunk[item]} * kNormTile;
  double total = 0;
#pragma unroll 4
  for (int i = 0; i < kNormTile / (kBlockThreads * kLane); ++i) {
    const int pack = i * kBlockThreads + static_cast<int>(threadIdx.x);
    Place place = make_place(begin + pack * kLane, t.numel);
    place.is_packed = is_aligned && place.count == kLane;
    float grad[kLane];
    widen_all(load(t.grad, place, is_wide), t.dtype, grad);
#pragma unroll
    for (int k = 0; k < kLane; ++k) total = fma(double{grad[k]}, double{grad[k]}, total);
  }
  total = row_reduce<kBlockThreads, Sum>(total, shared);
  if (threadIdx.x == 0) args.partial[blockIdx.x] = total;
}

// norm = sqrt(sum of partial)
__global__ void __launch_bounds__(kBlockThreads)
    norm_kernel(const double* __restrict__ partial,  // [tiles]
                float* __restrict__ norm,            // [1]
                int64_t tiles) {
  __shared__ double shared[kWarps];
  double total = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kBlockThreads) total += partial[i];
  total = row_reduce<kBlockThreads, Sum>(total, shared);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(total));
}

}  // namespace

const char* launch_adamw_grad_norm(const GradSlot* slots, int64_t count, double* partial,
                                   float* norm, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  NormArguments args;
  args.partial = partial;
  for_each_list(args.list, slots, count, norm_tiles, [&](uint32_t tiles) {
    squares_kernel<<<tiles, kBlockThreads, 0, cuda_stream>>>(args);
    args.partial += tiles;
  });
  norm_kernel<<<1, kBlockThreads, 0, cuda_stream>>>(partial, norm, args.partial - partial);
  return launch_error();
}

}  // namespace clipfast::adamw

// What kernels over the rows of a matrix share: 16-byte packs, rows held in registers, reductions
// of one fixed order, and the choice of a kernel by type and width. Free of torch headers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/constants.h"
#include "common/element_types.h"
#include "common/rows.h"

namespace clipfast {
namespace {

constexpr int kWarp = 32;
constexpr int kBlockThreads = 256;

using CudaTypes = ElementTypes<__half, __nv_bfloat16>;

// Blocks of a row kernel that must fit on a multiprocessor together, which leaves 128 registers per
// thread. Without it ptxas spills a register or two to reach an occupancy that a memory-bound
// kernel with this many bytes in flight (16 to 64 KiB per block) does not need.
constexpr int kMinBlocks = 2;

// The intrinsics, because torch builds with the implicit half conversions turned off.
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T narrow(acc_t<T> v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

// N elements that move as one memory access of at most 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// Elements of its row that one thread keeps in registers. Single elements cost a predicate each,
// and registers with it, so the rare unaligned rows keep fewer.
template <typename T, int N>
constexpr int kElementsPerThread = N == 1 ? 8 : (sizeof(acc_t<T>) == 8 ? 16 : 32);

// The accumulation type's limits, spelled out: numeric_limits is not for device code without
// --expt-relaxed-constexpr. kLow: below it, squares have rounded to zero.
template <typename Acc>
struct Limits;

template <>
struct Limits<float> {
  static constexpr float kTiny = 1.17549435e-38f;
  static constexpr float kMax = 3.40282347e+38f;
  static constexpr float kLow = kSmallestSquares;
  static constexpr int kMaxScale = 126;  // 2^126 and 2^-126 are both normal numbers
};

template <>
struct Limits<double> {
  static constexpr double kTiny = 2.2250738585072014e-308;
  static constexpr double kMax = 1.7976931348623157e+308;
  static constexpr double kLow = kSmallestSquaresDouble;
  static constexpr int kMaxScale = 1022;
};

struct Sum {
  template <typename Acc>
  __device__ static Acc apply(Acc a, Acc b) {
    return a + b;
  }
};

// Unlike fmax, keeps a NaN.
struct Largest {
  template <typename Acc>
  __device__ static Acc apply(Acc a, Acc b) {
    return a > b || a != a ? a : b;
  }
};

// Combines one value per thread over the row's Threads threads; all of them get the result, and all
// of them must call. `shared` holds one Acc per warp of the block.
template <int Threads, typename Op, typename Acc>
__device__ __forceinline__ Acc row_reduce(Acc v, Acc* shared) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    v = Op::apply(v, __shfl_xor_sync(0xffffffffu, v, offset));
  }
  if constexpr (Threads > kWarp) {
    constexpr int kWarps = Threads / kWarp;
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = v;
    __syncthreads();
    v = shared[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) v = Op::apply(v, shared[w]);
    // The next call writes `shared` again: no warp may still be reading.
    __syncthreads();
  }
  return v;
}

// A row seen by one of its threads: packs lane, lane + Threads, lane + 2 Threads, ... of which the
// first kCached are held in registers. Inside a row 32-bit indices do (normalize.cpp checks D).
template <typename T, int N, int Threads, int Elements>
struct RowReader {
  static constexpr int kCached = Elements / N;
  const Pack<T, N>* row;
  int packs;
  int lane;
  Pack<T, N> cache[kCached];

  __device__ __forceinline__ RowReader(const T* start, int dim, int lane)
      : row(reinterpret_cast<const Pack<T, N>*>(start)), packs(dim / N), lane(lane) {
#pragma unroll
    for (int i = 0; i < kCached; ++i) {
      const int p = lane + i * Threads;
      if (p < packs) cache[i] = row[p];
    }
  }

  // One that is not in registers: a copy, so that it is loaded in one piece.
  __device__ __forceinline__ Pack<T, N> far_pack(int p) const { return row[p]; }
};

// Calls visit(pack index, pack of the first row, pack of the second, ...) for each of the thread's
// packs, over rows of equal length.
template <typename Visit, typename T, int N, int Threads, int Elements, typename... Others>
__device__ __forceinline__ void for_each_pack(const Visit& visit,
                                              const RowReader<T, N, Threads, Elements>& reader,
                                              const Others&... others) {
  constexpr int kCached = RowReader<T, N, Threads, Elements>::kCached;
#pragma unroll
  for (int i = 0; i < kCached; ++i) {
    const int p = reader.lane + i * Threads;
    if (p < reader.packs) visit(p, reader.cache[i], others.cache[i]...);
  }
  for (int p = reader.lane + kCached * Threads; p < reader.packs; p += Threads) {
    visit(p, reader.far_pack(p), others.far_pack(p)...);
  }
}

// Which row this thread works on, and as which of the row's threads.
template <int Threads>
__device__ __forceinline__ int64_t my_row() {
  return static_cast<int64_t>(blockIdx.x) * (kBlockThreads / Threads) + threadIdx.x / Threads;
}

// Whether rows that start at `start` and lie `stride` elements apart can be accessed in packs.
template <typename T, int N>
bool in_packs(const void* start, int64_t stride, int64_t dim) {
  return reinterpret_cast<uintptr_t>(start) % (sizeof(T) * N) == 0 && stride % N == 0 &&
         dim % N == 0;
}

template <typename T, int N, typename RowsOrMutableRows>
bool in_packs(const RowsOrMutableRows& rows, int64_t dim) {
  return in_packs<T, N>(rows.data, rows.stride, dim);
}

template <int Threads>
unsigned blocks_for(int64_t rows) {
  constexpr int64_t kRows = kBlockThreads / Threads;
  return static_cast<unsigned>((rows + kRows - 1) / kRows);
}

// How a kernel over rows is launched: elements that move together, threads per row.
template <int N, int Threads>
struct RowShape {
  static constexpr int kPack = N;
  static constexpr int kThreads = Threads;
};

// Calls launch(RowShape, thread blocks): one warp per row while the row of X fits a warp's
// registers, a block beyond.
template <typename X, int N, typename Launch>
void pick_kernel(bool packed, int64_t rows, int64_t dim, const Launch& launch) {
  // Rows that cannot be read in packs are rare (an odd D): one form serves them.
  if (!packed) return launch(RowShape<1, kWarp>{}, blocks_for<kWarp>(rows));
  if (dim <= kWarp * kElementsPerThread<X, N>) {
    return launch(RowShape<N, kWarp>{}, blocks_for<kWarp>(rows));
  }
  launch(RowShape<N, kBlockThreads>{}, blocks_for<kBlockThreads>(rows));
}

template <typename X, typename Y>
constexpr int pack_size() {
  return 16 / static_cast<int>(sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));
}

const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace clipfast

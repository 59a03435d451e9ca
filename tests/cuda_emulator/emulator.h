// CUDA kernels on the CPU, for tests: included before a kernel file that g++ compiles as C++.
//
// Every thread of a block is a fiber; blocks run one after another. A fiber runs until it waits for
// its block (__syncthreads) or its warp (__shfl_*_sync), so results do not depend on timing. With
// CLIPFAST_EMULATOR_REVERSED=1 threads and blocks run in the opposite order: a result that changes
// has missed a barrier. A barrier that not all threads reach, or a shuffle among lanes of which one
// has left, ends the process with a message.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>  // unlike <cmath>, brings the overloads for float that CUDA has

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

namespace emulator {

extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

struct Shape {
  dim3 grid, block;
  Shape(dim3 grid, dim3 block, size_t /*shared_bytes*/, cudaStream_t) : grid(grid), block(block) {}
};

void run(const Shape& shape, const std::function<void()>& thread);
void wait_for_block();
// Gives `size` bytes of each lane to the lanes that ask for them.
void exchange(void* value, size_t size, int source_lane, unsigned mask);
int lane();

// kernel<<<shape>>>(arguments) is rewritten to launch(shape, kernel)(arguments).
template <typename Kernel>
auto launch(const Shape& shape, Kernel kernel) {
  return [=](auto... arguments) { run(shape, [&] { kernel(arguments...); }); };
}

}  // namespace emulator

// What csrc leaves to whoever plays the hardware.
#define CLIPFAST_EMULATED_CUDA
#undef __host__
#undef __device__
#undef __global__
#undef __grid_constant__
#undef __launch_bounds__
#undef __shared__
#define __host__
#define __device__
#define __global__
// Not copied for every thread.
#define __grid_constant__ &
#define __launch_bounds__(...)
#define __shared__ static
#define threadIdx (::emulator::thread_index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

inline void __syncthreads() { emulator::wait_for_block(); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  emulator::exchange(&value, sizeof(T), emulator::lane() ^ lane_mask, mask);
  return value;
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta) {
  const int source = emulator::lane() + delta;
  emulator::exchange(&value, sizeof(T), source < 32 ? source : emulator::lane(), mask);
  return value;
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}

namespace emulator {

// Ends the process where a GPU would.
void check_alignment(const void* p, size_t alignment);

// x, one unit in the last place off in a direction that its bits choose.
inline float perturbed(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const float direction = (bits * 0x9E3779B9u >> 31) != 0 ? 1.0f : -1.0f;
  return std::nextafter(x, direction * std::numeric_limits<float>::infinity());
}

// What .ftz does.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

}  // namespace emulator

template <typename T>
T __ldcs(const T* p) {
  emulator::check_alignment(p, alignof(T));
  return *p;
}

template <typename T>
void __stcs(T* p, T value) {
  emulator::check_alignment(p, alignof(T));
  *p = value;
}

// As wrong as the hardware's may be.
inline float approximate_reciprocal(float x) {
  return emulator::flushed(emulator::perturbed(static_cast<float>(1.0 / emulator::flushed(x))));
}
// The steps that follow it give the nearest root for the hardware's values, which were all tried
// when the compiler's own form was made, and for these; not for any that is one unit off.
inline float approximate_inverse_root(float x) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(emulator::flushed(x))));
}

inline float __int_as_float(int bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

inline int __float2int_rn(float v) {
  if (std::isnan(v)) return 0;
  if (v >= 0x1p31f) return std::numeric_limits<int>::max();
  if (v < -0x1p31f) return std::numeric_limits<int>::min();
  return static_cast<int>(std::nearbyint(v));
}

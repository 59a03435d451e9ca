// oneDNN's block matrix product (brgemm), as torch exposes it to its own kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) && defined(CPUBLAS_BRGEMM_F32F32F32) && defined(CPUBLAS_BRGEMM_BF16BF16F32)
#define CLIPFAST_HAS_BRGEMM 1
#endif

namespace clipfast {

// Whether the product of this type runs here, with the processor's own instructions for it.
bool has_brgemm(at::ScalarType type);

#ifdef CLIPFAST_HAS_BRGEMM

// C = A B, or C + A B. A right operand of bfloat16 has its rows interleaved in pairs.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
              float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, !std::is_same_v<T, float>);
}

// Where the processor has tile registers, leaves them free for others.
template <typename T>
void release_brgemm() {
  at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
}

#endif

// Uninitialised memory for each thread, on cache lines of its own.
template <typename T>
class PerThread {
 public:
  PerThread(int64_t threads, int64_t count)
      : stride_((count * sizeof(T) + 63) / 64 * 64),
        memory_(at::empty({threads * stride_}, at::kByte)) {}

  T* operator[](int64_t thread) {
    return reinterpret_cast<T*>(static_cast<char*>(memory_.mutable_data_ptr()) + thread * stride_);
  }

 private:
  int64_t stride_;
  at::Tensor memory_;
};

}  // namespace clipfast

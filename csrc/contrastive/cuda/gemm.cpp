// cuBLAS's matrix products of row-major matrices.
#ifdef CLIPFAST_CUDA

#include "gemm.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>

#include "arguments.h"
#include "strip.h"

namespace clipfast {
namespace {

cudaDataType_t to_cuda(at::ScalarType type) {
  switch (type) {
    case at::kHalf:
      return CUDA_R_16F;
    case at::kBFloat16:
      return CUDA_R_16BF;
    case at::kDouble:
      return CUDA_R_64F;
    default:
      return CUDA_R_32F;
  }
}

}  // namespace

Operand rows_from(const at::Tensor& t, int64_t first, bool is_transposed) {
  return {at_element(t, first * row_stride(t)), leading_dimension(t), is_transposed};
}

// cuBLAS is column-major: what it is shown as a matrix with leading dimension `stride` is the
// transpose of ours. So it is asked for c^T = b^T a^T: b first, n before m, and a plain operand
// stays plain in its eyes. fp32 follows torch.backends.cuda.matmul.allow_tf32, which torch sets on
// the handle.
void gemm(at::ScalarType type, const Operand& a, const Operand& b, void* c, int64_t c_stride,
          int64_t m, int64_t n, int64_t k, double alpha, double beta) {
  if (m == 0 || n == 0) return;
  const bool is_double = type == at::kDouble;
  const float alpha_float = static_cast<float>(alpha), beta_float = static_cast<float>(beta);
  const auto operation = [](const Operand& x) {
    return x.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  const auto scalar = [&](const double& wide, const float& single) -> const void* {
    if (is_double) return &wide;
    return &single;
  };
  TORCH_CUDABLAS_CHECK(cublasGemmEx(
      at::cuda::getCurrentCUDABlasHandle(), operation(b), operation(a), static_cast<int>(n),
      static_cast<int>(m), static_cast<int>(k), scalar(alpha, alpha_float), b.data, to_cuda(type),
      static_cast<int>(b.stride), a.data, to_cuda(type), static_cast<int>(a.stride),
      scalar(beta, beta_float), c, is_double ? CUDA_R_64F : CUDA_R_32F, static_cast<int>(c_stride),
      is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

}  // namespace clipfast

#endif  // CLIPFAST_CUDA

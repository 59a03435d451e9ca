// Stands in for torch's header, and for the part of cuBLAS that clipfast calls (emulator.cpp).
#pragma once

#include <driver_types.h>
#include <library_types.h>

using cublasHandle_t = void*;
enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_64F = 70 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                            int m, int n, int k, const void* alpha, const void* a,
                            cudaDataType_t a_type, int lda, const void* b, cudaDataType_t b_type,
                            int ldb, const void* beta, void* c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm);

namespace at::cuda {

inline cublasHandle_t getCurrentCUDABlasHandle() { return nullptr; }

struct DeviceProperties {
  int multiProcessorCount = 2;
};

inline const DeviceProperties* getCurrentDeviceProperties() {
  static const DeviceProperties properties;
  return &properties;
}

}  // namespace at::cuda

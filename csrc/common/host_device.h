// A function that the host's compilers and nvcc compile alike.
#pragma once

#if defined(__CUDACC__) || defined(CLIPFAST_EMULATED_CUDA)
#define CLIPFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CLIPFAST_HOST_DEVICE inline
#endif

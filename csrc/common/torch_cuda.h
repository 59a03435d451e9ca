// Small bridges to torch's CUDA part, for the files that launch kernels.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

namespace clipfast {

inline void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// error: what a launch returned, nullptr where it went well.
inline void check_launch(const char* error, const char* name) {
  TORCH_CHECK(error == nullptr, name, ": the CUDA launch failed: ", error);
}

}  // namespace clipfast

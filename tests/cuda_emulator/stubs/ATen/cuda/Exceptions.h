// Stands in for torch's header.
#pragma once

#include <c10/util/Exception.h>

#define TORCH_CUDABLAS_CHECK(call)                                          \
  do {                                                                      \
    const auto status = (call);                                             \
    TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLAS refused: " #call); \
  } while (0)

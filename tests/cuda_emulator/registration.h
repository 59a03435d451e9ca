// Included before a file that registers CUDA operators: they become operators of the library
// clipfast_emulated, for CPU tensors. Their schemas are defined by __init__.py.
#pragma once

#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) EMULATED_LIBRARY(library, C10_UID, m)
#define EMULATED_LIBRARY(library, id, m) EMULATED_LIBRARY_NAMED(library, id, m)
#define EMULATED_LIBRARY_NAMED(library, id, m)                                                     \
  static void emulated_##id(torch::Library&);                                                      \
  static const torch::detail::TorchLibraryInit emulated_init_##id(                                 \
      torch::Library::IMPL, &emulated_##id, #library "_emulated", c10::DispatchKey::CPU, __FILE__, \
      __LINE__);                                                                                   \
  void emulated_##id(torch::Library& m)

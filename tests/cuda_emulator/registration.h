// Included before a file that registers CUDA operators: they become operators of the library
// clipfast_emulated, for CPU tensors. Their schemas are those of clipfast/ops/registry.py, defined
// by __init__.py. CPU operators of the same file are not registered: theirs is another build.
#pragma once

#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) EMULATED_##key(library, C10_UID, m)
#define EMULATED_CPU(library, id, m) LEFT_OUT(id, m)
#define LEFT_OUT(id, m) [[maybe_unused]] static void left_out_##id(torch::Library& m)
#define EMULATED_CUDA(library, id, m) EMULATED_LIBRARY(library, id, m)
#define EMULATED_LIBRARY(library, id, m)                                                           \
  static void emulated_##id(torch::Library&);                                                      \
  static const torch::detail::TorchLibraryInit emulated_init_##id(                                 \
      torch::Library::IMPL, &emulated_##id, #library "_emulated", c10::DispatchKey::CPU, __FILE__, \
      __LINE__);                                                                                   \
  void emulated_##id(torch::Library& m)

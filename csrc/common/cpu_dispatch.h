// Run-time choice among the builds of one CPU kernel.
//
// setup.py compiles every `*_cpu_kernel.cpp` once per vector capability: DEFAULT everywhere, AVX2
// and AVX512 on x86-64 too. Each build lives in the namespace named by CPU_CAPABILITY, the macro
// that ATen's vector types use as well. So one wheel runs on any x86-64 and uses what the machine
// has. The objects are linked in the order DEFAULT, AVX2, AVX512: where an inline function of a
// header exists in several of them, the linker keeps the first, which every machine can run.
#pragma once

#include <cstdint>
#include <string>

namespace clipfast {

enum class CpuCapability { kDefault, kAvx2, kAvx512 };

// What torch found on this machine, or what the environment variable CLIPFAST_CPU_CAPABILITY
// (default, avx2, avx512) lowers it to. Asking for more than the machine has is an error.
CpuCapability cpu_capability();

std::string cpu_capability_name();

#if defined(__x86_64__)

#define CLIPFAST_DECLARE_CPU_KERNEL(name, ...) \
  namespace DEFAULT {                          \
  void name(__VA_ARGS__);                      \
  }                                            \
  namespace AVX2 {                             \
  void name(__VA_ARGS__);                      \
  }                                            \
  namespace AVX512 {                           \
  void name(__VA_ARGS__);                      \
  }

template <typename Kernel>
Kernel* select_cpu_kernel(Kernel* for_default, Kernel* for_avx2, Kernel* for_avx512) {
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return for_avx512;
    case CpuCapability::kAvx2:
      return for_avx2;
    default:
      return for_default;
  }
}

#define CLIPFAST_CPU_KERNEL(name)                                                    \
  ::clipfast::select_cpu_kernel(&::clipfast::DEFAULT::name, &::clipfast::AVX2::name, \
                                &::clipfast::AVX512::name)

#else

#define CLIPFAST_DECLARE_CPU_KERNEL(name, ...) \
  namespace DEFAULT {                          \
  void name(__VA_ARGS__);                      \
  }

#define CLIPFAST_CPU_KERNEL(name) (&::clipfast::DEFAULT::name)

#endif

// A kernel over a part of a range, on the calling thread.
#define CLIPFAST_DECLARE_CPU_RANGE_KERNEL(name, Args) \
  CLIPFAST_DECLARE_CPU_KERNEL(name, const Args& args, int64_t begin, int64_t end)

}  // namespace clipfast

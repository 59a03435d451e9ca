#include "cpu_dispatch.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <cstdlib>

namespace clipfast {
namespace {

CpuCapability detect() {
#if defined(__x86_64__)
  // torch's word counts, not cpuid's: it also honours ATEN_CPU_CAPABILITY, so one variable holds
  // both libraries back.
  const std::string name = at::get_cpu_capability();
  if (name.rfind("AVX512", 0) == 0) return CpuCapability::kAvx512;
  if (name.rfind("AVX2", 0) == 0) return CpuCapability::kAvx2;
#endif
  return CpuCapability::kDefault;
}

const char* name_of(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::kAvx512:
      return "avx512";
    case CpuCapability::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

CpuCapability choose() {
  const CpuCapability machine = detect();
  const char* wish = std::getenv("CLIPFAST_CPU_CAPABILITY");
  if (wish == nullptr || *wish == '\0') return machine;
  for (auto known : {CpuCapability::kDefault, CpuCapability::kAvx2, CpuCapability::kAvx512}) {
    if (std::string(wish) != name_of(known)) continue;
    // Without this check the first vector instruction would end the process with SIGILL.
    TORCH_CHECK(known <= machine, "CLIPFAST_CPU_CAPABILITY=", wish,
                " asks for more than this machine has: expected at most ", name_of(machine));
    return known;
  }
  TORCH_CHECK(false, "CLIPFAST_CPU_CAPABILITY: expected default, avx2 or avx512, got ", wish);
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability chosen = choose();
  return chosen;
}

std::string cpu_capability_name() { return name_of(cpu_capability()); }

}  // namespace clipfast

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "dispatch.h"

namespace rdk::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

Capability of_this_machine() {
#if RDK_X86_VARIANTS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = __builtin_cpu_supports("avx512bf16");
  if (avx2 && avx512 && bf16) return Capability::kAvx512Bf16;
  if (avx2 && avx512) return Capability::kAvx512;
  if (avx2) return Capability::kAvx2;
#endif
  return Capability::kBaseline;
}

Capability choose() {
  const Capability best = of_this_machine();
  const char* wanted = std::getenv("RDKERNELS_CPU_CAPABILITY");
  if (wanted == nullptr) return best;
  for (int i = 0; i < 4; ++i) {
    if (std::string_view(wanted) == kNames[i]) return std::min(best, static_cast<Capability>(i));
  }
  return best;
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

}  // namespace rdk::cpu

extern "C" const char* rdk_cpu_capability(void) {
  return rdk::cpu::kNames[static_cast<int>(rdk::cpu::capability())];
}

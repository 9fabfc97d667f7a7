// Asks the processor which kernels it can run.
#include "kernels/cpu/isa.h"

namespace verbatim::kernels::cpu {

Isa DetectIsa() {
#if defined(__x86_64__)
  // These builtins check the operating system's support for the registers as well.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kScalar;
}

}  // namespace verbatim::kernels::cpu

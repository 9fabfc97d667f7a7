// The floating-point environment that the arithmetic contract demands of every thread.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <cfenv>
#endif

namespace verbatim::kernels::cpu {

// Whether this thread rounds to nearest even, keeps subnormals (FTZ and DAZ off) and masks
// exceptions; restores that where it does not. A library may change it when it is loaded.
inline bool CheckFloatEnvironment() {
#if defined(__x86_64__)
  constexpr uint32_t kDefault = 0x1f80;
  constexpr uint32_t kFlags = 0x3f;  // exceptions seen: not part of the environment
  const uint32_t mxcsr = _mm_getcsr();
  if ((mxcsr & ~kFlags) == kDefault) return true;
  _mm_setcsr(kDefault);
  return false;
#else
  if (std::fegetround() == FE_TONEAREST) return true;
  std::fesetround(FE_TONEAREST);
  return false;
#endif
}

}  // namespace verbatim::kernels::cpu

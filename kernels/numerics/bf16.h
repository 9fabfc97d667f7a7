// Conversions between fp32 and the 16-bit floating-point formats, by integer operations.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/numerics/host_device.h"

namespace verbatim::numerics {

// The bits of the bf16 value nearest to x, ties to even. Overflow gives an infinity; a NaN keeps
// its sign and upper payload bits and becomes quiet.
VERBATIM_HD uint16_t Bf16FromFloat(float x) {
  uint32_t bits = 0;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Exact.
VERBATIM_HD float FloatFromBf16(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float x = 0;
  memcpy(&x, &bits, 4);
  return x;
}

// x rounded to a value that bf16 can hold.
VERBATIM_HD float RoundToBf16(float x) { return FloatFromBf16(Bf16FromFloat(x)); }

// Exact, subnormals included; a NaN keeps sign and payload and becomes quiet.
VERBATIM_HD float FloatFromFp16(uint16_t fp16) {
  const uint32_t sign = static_cast<uint32_t>(fp16 & 0x8000u) << 16;
  const uint32_t exponent = (fp16 >> 10) & 0x1fu;
  uint32_t mantissa = fp16 & 0x3ffu;
  uint32_t bits = 0;
  if (exponent == 31) {
    bits = 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u);
  } else if (exponent != 0) {
    bits = ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa != 0) {
    uint32_t shifted_exponent = 113;
    while ((mantissa & 0x400u) == 0) {
      mantissa <<= 1;
      --shifted_exponent;
    }
    bits = (shifted_exponent << 23) | ((mantissa & 0x3ffu) << 13);
  }
  bits |= sign;
  float x = 0;
  memcpy(&x, &bits, 4);
  return x;
}

}  // namespace verbatim::numerics

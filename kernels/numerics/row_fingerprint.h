// An order-free fingerprint of one row of fp32 logits, by its bits.
//
// Over the elements i of the row, with w the 32 bits of element i (so −0 differs from +0 and every
// NaN from every other) and all arithmetic modulo 2^64:
//   a = sum of t + (low(t) ^ high(t)) · high(t)   with t = w · kMulA + i · kStepA
//   b = sum of low(t) · high(t)                   with t = w · kMulB + i · kStepB
// where low and high are the 32-bit halves. Integer sums have no order, so threads, vector width
// and vocabulary shards cannot change them. The product of the halves is what keeps opposite
// changes of two elements from cancelling. Only 32×32→64-bit products are used, which every vector
// unit has. This is a checksum against accident, not a cryptographic hash; receipts chain it with
// SHA-256.
#pragma once

#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace verbatim::numerics {

struct RowFingerprint {
  uint64_t a = 0;
  uint64_t b = 0;
  friend bool operator==(const RowFingerprint& x, const RowFingerprint& y) {
    return x.a == y.a && x.b == y.b;
  }
};

namespace fingerprint {

inline constexpr uint32_t kMulA = 0x9E3779B1;  // odd 32-bit multipliers, odd 64-bit index steps
inline constexpr uint64_t kStepA = 0xD1B54A32D192ED03;
inline constexpr uint32_t kMulB = 0x85EBCA77;
inline constexpr uint64_t kStepB = 0xA0761D6478BD642F;

VERBATIM_HD uint64_t SummandA(uint32_t bits, uint64_t index) {
  const uint64_t t = static_cast<uint64_t>(bits) * kMulA + index * kStepA;
  return t + ((t ^ (t >> 32)) & 0xFFFFFFFF) * (t >> 32);
}
VERBATIM_HD uint64_t SummandB(uint32_t bits, uint64_t index) {
  const uint64_t t = static_cast<uint64_t>(bits) * kMulB + index * kStepB;
  return (t & 0xFFFFFFFF) * (t >> 32);
}

}  // namespace fingerprint

// Fingerprint of row[0..n). `first_index` is the index of row[0] in the whole row: the fingerprints
// of a row's slices add up (element by element, wrapping) to that of the row.
RowFingerprint FingerprintRow(const float* row, int64_t n, int64_t first_index = 0);

}  // namespace verbatim::numerics

// The plain implementation of the row fingerprint.
#include "kernels/numerics/row_fingerprint.h"

#include <cstring>

namespace verbatim::numerics {

RowFingerprint FingerprintRow(const float* row, int64_t n, int64_t first_index) {
  RowFingerprint sum;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof(bits));
    const uint64_t index = static_cast<uint64_t>(first_index + i);
    sum.a += fingerprint::SummandA(bits, index);
    sum.b += fingerprint::SummandB(bits, index);
  }
  return sum;
}

}  // namespace verbatim::numerics

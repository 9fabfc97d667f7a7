// The row fingerprint as one plain loop, compiled for several vector units. Integer sums have no
// order, so all of them give the same value.
#include "kernels/numerics/row_fingerprint.h"

#include <cstring>

namespace verbatim::numerics {
namespace {

[[gnu::always_inline]] inline RowFingerprint Sum(const float* row, int64_t n, int64_t first_index) {
  uint64_t a = 0, b = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof(bits));
    const uint64_t index = static_cast<uint64_t>(first_index + i);
    a += fingerprint::SummandA(bits, index);
    b += fingerprint::SummandB(bits, index);
  }
  return {a, b};
}

using Function = RowFingerprint (*)(const float* row, int64_t n, int64_t first_index);

RowFingerprint Plain(const float* row, int64_t n, int64_t first_index) {
  return Sum(row, n, first_index);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] RowFingerprint Avx2(const float* row, int64_t n, int64_t first_index) {
  return Sum(row, n, first_index);
}
[[gnu::target("avx512f,avx512dq,avx512vl")]] RowFingerprint Avx512(const float* row, int64_t n,
                                                                   int64_t first_index) {
  return Sum(row, n, first_index);
}
#endif

Function Choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) return Avx512;
  if (__builtin_cpu_supports("avx2")) return Avx2;
#endif
  return Plain;
}

}  // namespace

RowFingerprint FingerprintRow(const float* row, int64_t n, int64_t first_index) {
  static const Function function = Choose();
  return function(row, n, first_index);
}

}  // namespace verbatim::numerics

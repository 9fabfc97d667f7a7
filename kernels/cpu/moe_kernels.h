// The inner loops of a mixture of experts, of each instruction set; kernels/cpu/moe.h has the
// doors.
#pragma once

#include <cstdint>

#include "kernels/ops/moe.h"

namespace verbatim::kernels::cpu {

// Rows [begin, end) each.
struct MoeKernels {
  // wanted[row, r]: the r-th expert of the row's order.
  void (*select)(const MoeRouteParams& params, int32_t* wanted, int64_t begin, int64_t end);
  // params.weights of params.experts; a lost slot has a share in the sum with its wanted expert.
  void (*weigh)(const MoeRouteParams& params, const int32_t* wanted, int64_t begin, int64_t end);
  void (*combine)(const MoeCombineParams& params, int64_t begin, int64_t end);
};

// Orders as the floats do, −0 equal to +0 and NaN (key 0) below everything.
inline __attribute__((always_inline)) uint32_t OrderKey(float x) {
  if (x != x) return 0;
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) == 0) return 0x80000000u;
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

namespace isa_scalar {
extern const MoeKernels kMoeKernels;
}
namespace isa_avx2 {
extern const MoeKernels kMoeKernels;
}
namespace isa_avx512 {
extern const MoeKernels kMoeKernels;
}

}  // namespace verbatim::kernels::cpu

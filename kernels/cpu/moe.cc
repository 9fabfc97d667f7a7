// Routing, permutation and the weighted sum of a mixture of experts on the CPU.
#include "kernels/cpu/moe.h"

namespace verbatim::kernels::cpu {

absl::Status MoeRoute(const CpuContext&, const MoeRouteParams&) {
  return absl::UnimplementedError("MoeRoute: not on this backend");
}

absl::Status MoePermute(const CpuContext&, const MoePermuteParams&) {
  return absl::UnimplementedError("MoePermute: not on this backend");
}

absl::Status MoeCombine(const CpuContext&, const MoeCombineParams&) {
  return absl::UnimplementedError("MoeCombine: not on this backend");
}

}  // namespace verbatim::kernels::cpu

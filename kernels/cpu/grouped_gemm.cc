// The experts' matrix products on the CPU.
#include "kernels/cpu/grouped_gemm.h"

namespace verbatim::kernels::cpu {

absl::Status GroupedGemm(const CpuContext&, const GroupedGemmParams&) {
  return absl::UnimplementedError("GroupedGemm: not on this backend");
}

}  // namespace verbatim::kernels::cpu

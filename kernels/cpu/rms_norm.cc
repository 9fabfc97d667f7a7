// RMSNorm on the CPU: checks and work split.
#include "kernels/cpu/rms_norm.h"

#include "kernels/cpu/parallel.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {
namespace isa_scalar {
void RmsNormRows(const RmsNormParams& params, bool round, int64_t begin, int64_t end);
}
namespace isa_avx2 {
void RmsNormRows(const RmsNormParams& params, bool round, int64_t begin, int64_t end);
}
namespace isa_avx512 {
void RmsNormRows(const RmsNormParams& params, bool round, int64_t begin, int64_t end);
}

absl::Status RmsNorm(const CpuContext& context, const RmsNormParams& params) {
  if (absl::Status status = CheckRmsNorm(params); !status.ok()) return status;
  if (params.rows == 0 || params.groups == 0) return absl::OkStatus();
  const int64_t row_elements = params.groups * params.cols;
  auto* rows = &isa_scalar::RmsNormRows;
#if defined(__x86_64__)
  if (context.isa == Isa::kAvx512) rows = &isa_avx512::RmsNormRows;
  if (context.isa == Isa::kAvx2) rows = &isa_avx2::RmsNormRows;
#endif
  const bool round =
      !IsStrong(params.mode.policy) && params.mode.activations == ActivationType::kBF16;
  ParallelRows(context, params.rows, row_elements, kMinElementsPerThread,
               [&](int64_t begin, int64_t end) { rows(params, round, begin, end); });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

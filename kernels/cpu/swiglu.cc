// SwiGLU on the CPU: checks and work split.
#include "kernels/cpu/swiglu.h"

#include "kernels/cpu/parallel.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {
namespace isa_scalar {
void SwiGluRows(const SwiGluParams& params, bool round, int64_t begin, int64_t end);
}
namespace isa_avx2 {
void SwiGluRows(const SwiGluParams& params, bool round, int64_t begin, int64_t end);
}
namespace isa_avx512 {
void SwiGluRows(const SwiGluParams& params, bool round, int64_t begin, int64_t end);
}

absl::Status SwiGlu(const CpuContext& context, const SwiGluParams& params) {
  if (absl::Status status = CheckSwiGlu(params); !status.ok()) return status;
  if (params.tokens == 0) return absl::OkStatus();
  auto* rows = &isa_scalar::SwiGluRows;
#if defined(__x86_64__)
  if (context.isa == Isa::kAvx512) rows = &isa_avx512::SwiGluRows;
  if (context.isa == Isa::kAvx2) rows = &isa_avx2::SwiGluRows;
#endif
  const bool round =
      !IsStrong(params.mode.policy) && params.mode.activations == ActivationType::kBF16;
  // An exponential and a division an element: about as much as two elements of a plain pass.
  ParallelRows(context, params.tokens, params.cols, kMinElementsPerThread / 2,
               [&](int64_t begin, int64_t end) { rows(params, round, begin, end); });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

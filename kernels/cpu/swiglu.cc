// SwiGLU on the CPU: checks and work split.
#include "kernels/cpu/swiglu.h"

#include "absl/strings/str_cat.h"
#include "kernels/cpu/parallel.h"

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
  if (params.tokens < 0 || params.cols < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("SwiGlu: tokens ", params.tokens, ", cols ", params.cols));
  }
  if (params.tokens == 0) return absl::OkStatus();
  if (params.gate_up == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError("SwiGlu: gate_up or y is missing");
  }
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

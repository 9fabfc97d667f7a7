// The experts' matrix products on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/moe.h"

namespace verbatim::kernels::cpu {

// Each weight must be a PackedMatrix packed for Gemm on this backend. An expert's kernel is the one
// that Gemm would choose for as many tokens: GemmKernel (kernels/cpu/gemm.h) names it.
// INVALID_ARGUMENT names the parameter that contradicts the others; nothing is written then.
absl::Status GroupedGemm(const CpuContext& context, const GroupedGemmParams& params);

}  // namespace verbatim::kernels::cpu

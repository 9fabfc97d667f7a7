// The experts' matrix products on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/moe.h"

namespace verbatim::kernels::cpu {

absl::Status GroupedGemm(const CpuContext& context, const GroupedGemmParams& params);

}  // namespace verbatim::kernels::cpu

// RmsNorm on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/rms_norm.h"

namespace verbatim::kernels::cpu {

absl::Status RmsNorm(const CpuContext& context, const RmsNormParams& params);

}  // namespace verbatim::kernels::cpu

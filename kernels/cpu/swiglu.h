// SwiGlu on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/swiglu.h"

namespace verbatim::kernels::cpu {

absl::Status SwiGlu(const CpuContext& context, const SwiGluParams& params);

}  // namespace verbatim::kernels::cpu

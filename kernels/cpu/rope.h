// Rope on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/rope.h"

namespace verbatim::kernels::cpu {

absl::Status Rope(const CpuContext& context, const RopeParams& params);

}  // namespace verbatim::kernels::cpu

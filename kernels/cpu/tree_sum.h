// TreeSum on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/tree_sum.h"

namespace verbatim::kernels::cpu {

absl::Status TreeSum(const CpuContext& context, const TreeSumParams& params);

}  // namespace verbatim::kernels::cpu

// GatherRows on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/gather_rows.h"

namespace verbatim::kernels::cpu {

absl::Status GatherRows(const CpuContext& context, const GatherRowsParams& params);

}  // namespace verbatim::kernels::cpu

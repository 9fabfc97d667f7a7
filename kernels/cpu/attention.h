// Attention over the paged cache in host memory.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/attention.h"

namespace verbatim::kernels::cpu {

absl::Status Attention(const CpuContext& context, const AttentionParams& params);

}  // namespace verbatim::kernels::cpu

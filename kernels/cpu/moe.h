// Routing, permutation and the weighted sum of a mixture of experts on the CPU.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/moe.h"

namespace verbatim::kernels::cpu {

// Contracts in kernels/ops/moe.h. INVALID_ARGUMENT names the parameter that contradicts the others,
// or the index that is out of range; nothing is written then.
absl::Status MoeRoute(const CpuContext& context, const MoeRouteParams& params);
absl::Status MoePermute(const CpuContext& context, const MoePermuteParams& params);
absl::Status MoeCombine(const CpuContext& context, const MoeCombineParams& params);

}  // namespace verbatim::kernels::cpu

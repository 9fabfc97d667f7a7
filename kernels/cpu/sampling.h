// Sampling on the CPU: kernels/ops/sampling.h.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/sampling.h"

namespace verbatim::kernels::cpu {

// INVALID_ARGUMENT, with no result written, for shapes, token ids or parameters out of range. Rows
// are independent: a row's result is the same in any batch, on any instruction set and with any
// number of threads.
absl::Status Sample(const CpuContext& context, const SamplingParams& params);

}  // namespace verbatim::kernels::cpu

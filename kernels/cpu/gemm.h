// Matrix products on the CPU; contract in kernels/ops/gemm.h.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/gemm.h"

namespace verbatim::kernels::cpu {

struct GemmOptions {};

// The weight must be a PackedMatrix packed for Gemm on this backend. INVALID_ARGUMENT names the
// parameter that contradicts it; nothing is written then.
absl::Status Gemm(const CpuContext& context, const GemmParams& params);

}  // namespace verbatim::kernels::cpu

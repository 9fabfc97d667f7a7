// Embedding on the CPU, the first operation of a step.
#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/embedding.h"

namespace verbatim::kernels::cpu {

// Every thread of the pool, the caller included, checks its floating-point environment here, once a
// step. INTERNAL, with nothing promised about y, when one had been changed: it is restored, and the
// step must not be used.
absl::Status Embedding(const CpuContext& context, const EmbeddingParams& params);

}  // namespace verbatim::kernels::cpu

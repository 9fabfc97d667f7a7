// Products of a mixture's experts on the CUDA backend, measured.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/runtime.h"
#include "nlohmann/json.hpp"

namespace verbatim::bench {

// Both products of the experts of one layer of Qwen3-30B-A3B (128 experts, 8 a token, hidden size
// 2048, 768 inside; its published config.json) for 1 … 8192 tokens that choose experts at random,
// by policy: time, operations a second, and the share of `copy_rate` (bytes a second) at which the
// weights that were used, activations and results pass through memory. For many tokens also the
// kernels of both forms of PINNED on rows that are bf16 and gathered already, and what rounding and
// gathering them takes; the product by mma.sync needs the rounding alone.
nlohmann::json BenchGroupedGemm(kernels::Backend& backend,
                                const kernels::cuda::runtime::DeviceInfo& device, double copy_rate);

}  // namespace verbatim::bench

// Products of a mixture's experts on the CUDA backend, measured.
#pragma once

#include "kernels/backend.h"
#include "nlohmann/json.hpp"

namespace verbatim::bench {

// Both products of the experts of one layer of Qwen3-30B-A3B (128 experts, 8 a token, hidden size
// 2048, 768 inside; its published config.json) for 1 … 2048 tokens that choose experts at random,
// by policy: time, operations a second, and the share of `copy_rate` (bytes a second) at which the
// weights that were used, activations and results pass through memory.
nlohmann::json BenchGroupedGemm(kernels::Backend& backend, double copy_rate);

}  // namespace verbatim::bench

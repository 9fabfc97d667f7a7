// The two forms of the pinned product, measured side by side.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/runtime.h"
#include "nlohmann/json.hpp"

namespace verbatim::bench {

// The products of Llama-3.1-8B for 128 … 8192 tokens that are bf16 already, by mma.sync and, where
// the device has it, by wgmma with every kind of tile: time, operations a second, and whether
// the bits were equal.
nlohmann::json BenchPinnedForms(kernels::Backend& backend,
                                const kernels::cuda::runtime::DeviceInfo& device);

}  // namespace verbatim::bench

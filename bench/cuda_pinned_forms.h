// The two forms of the pinned product, measured side by side.
#pragma once

#include "absl/functional/function_ref.h"
#include "kernels/backend.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/runtime.h"
#include "nlohmann/json.hpp"

namespace verbatim::bench {

// The products of Llama-3.1-8B for 128 … 8192 tokens that are bf16 already, by mma.sync and, where
// the backend uses it, by wgmma with every kind of tile: time, operations a second, and whether
// the bits were equal.
nlohmann::json BenchPinnedForms(kernels::Backend& backend,
                                const kernels::cuda::runtime::DeviceInfo& device);

// The same of one product of so many operations, into `row`: `launch` puts it on the stream, by
// wgmma with the tiles given or, for tiles of no columns, by mma.sync. The first `outputs` values
// at `y` are compared, or as many of them as is quick.
void MeasurePinnedForms(kernels::Backend& backend, const kernels::cuda::runtime::DeviceInfo& device,
                        kernels::cuda::Stream stream, double flops, const float* y, int64_t outputs,
                        absl::FunctionRef<int(const kernels::cuda::WgmmaTiles& tiles)> launch,
                        nlohmann::json* row);

}  // namespace verbatim::bench

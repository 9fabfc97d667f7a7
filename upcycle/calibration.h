// What a dense model's feed-forward parts see and do over calibration text.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "evaluate/window_runner.h"
#include "kernels/cpu/thread_pool.h"
#include "upcycle/router_fit.h"

namespace verbatim::upcycle {

using Windows = absl::Span<const std::vector<int32_t>>;
// Windows done of all.
using Progress = std::function<void(int64_t done, int64_t total)>;

// The rows that enter the feed-forward part of each layer, [layer][rows · hidden], in the order of
// the windows. PORTABLE, so the bits depend on model and windows alone.
absl::StatusOr<std::vector<std::vector<float>>> CollectInputs(evaluate::WindowRunner& runner,
                                                              Windows windows,
                                                              const Progress& progress);

// [layer][experts · neurons]: the sum over the rows routed to an expert of weight · activation²,
// the activation being silu(gate) · up. `routing` is by layer, over the rows of CollectInputs.
absl::StatusOr<std::vector<std::vector<double>>> MeasureActivations(
    evaluate::WindowRunner& runner, Windows windows, absl::Span<const Routing> routing,
    int64_t num_experts, kernels::cpu::ThreadPool& pool, const Progress& progress);

}  // namespace verbatim::upcycle

// One block of a mode: its share of the prompts' repeats, among other traffic, on one server.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"
#include "lab/demo_experiment.h"

namespace verbatim::lab {

// A measured request: temperature 0, everything else as the options say.
v1::GenerateRequest MeasuredRequest(const DemoOptions& options, const std::string& prompt,
                                    v1::Determinism determinism);

// Sends block `block` of `options.blocks` and adds what came back to `result`, whose `prompts` must
// have one entry for each prompt. Arrivals are Poisson at `rate` a second; infinite: a request is
// due as soon as one of `concurrency` slots is free. CANCELLED on Ctrl-C.
absl::Status RunDemoBlock(const DemoOptions& options, double rate, int64_t block,
                          client::Client* client, DemoModeResult* result,
                          const std::function<void(const std::string&)>& say);

// Requests per second that a full server completes; also warms it up.
absl::StatusOr<double> MeasureRequestRate(const DemoOptions& options, client::Client* client);

}  // namespace verbatim::lab

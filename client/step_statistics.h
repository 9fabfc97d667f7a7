// What the server's engine did between two looks at it.
#pragma once

#include "absl/status/status.h"
#include "client/client.h"
#include "nlohmann/json.hpp"

namespace verbatim::client {

// Sums of the differences between looks, over one or more spans.
struct StepTotals {
  v1::StepStatistics steps;
  double front_end_cpu_seconds = 0;

  // Adds what happened between two answers of one server.
  void Add(const v1::GetServerInfoResponse& before, const v1::GetServerInfoResponse& after);
  void Add(const StepTotals& other);

  // Everything a step costs: planning, forward pass, sampling, emitting, and the CPU time of the
  // front end (gRPC, tokenising), which runs beside the engine.
  double step_seconds() const;
  // The share of that which is neither forward pass nor sampling; 0 when there were no steps.
  double scheduler_and_front_end_share() const;

  nlohmann::json ToJson() const;
};

}  // namespace verbatim::client

// Servers of a mixture of experts, one for each limit, and what every arm of an experiment does on
// them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lab/moe_attack.h"
#include "lab/moe_neighbours.h"
#include "lab/moe_server.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

struct MoeExperimentOptions {
  DemoOptions demo;  // repeats 0: no prompts among neighbours
  MoeServerOptions server;
  AttackSearchOptions search;  // capacity_factor is set from the arms
  int64_t attack_trials = 1;   // of each victim, in each arm; 0: no attack
  int64_t victims = 12;        // the first so many prompts
};

// One mode under one limit.
struct MoeArm {
  DemoMode mode;
  ExpertLimit limit;
};

struct MoeArmResult {
  MoeArm arm;
  NeighboursResult neighbours;
  std::optional<AttackResult> attack;

  bool deterministic() const { return arm.mode.determinism != v1::DETERMINISM_THROUGHPUT; }
  // A deterministic arm in which some answer has other bits than the answer alone.
  bool PromiseBroken() const;
};

struct MoeExperimentResult {
  MoeExperimentOptions options;
  std::vector<MoeArmResult> arms;
  std::vector<Victim> victims;  // empty without attack
  v1::GetModelInfoResponse model;
  v1::GetServerInfoResponse server;
  nlohmann::json derived;  // upcycle.json beside the weights, or null
  double search_seconds = 0;
  double wall_seconds = 0;

  bool PromiseBroken() const;
  const MoeArmResult* Find(const std::string& key) const;  // null: there is none
};

// Mode keys are what the arms' results are called; titles say mode and limit.
MoeArm ThroughputArm(const std::string& key, const ExpertLimit& limit);
// Measured requests are deterministic, everybody else's are not.
MoeArm DeterministicArm(const std::string& key, const ExpertLimit& limit);

// The arms in their order; a server is started when an arm's limit is not the one before. CANCELLED
// on Ctrl-C.
absl::StatusOr<MoeExperimentResult> RunMoeExperiment(
    const MoeExperimentOptions& options, const std::vector<MoeArm>& arms,
    const std::function<void(const std::string&)>& say);

}  // namespace verbatim::lab

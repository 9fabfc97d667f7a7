// The sequence of servers and arms.
#include "lab/moe_experiment.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lab/demo_block.h"

namespace verbatim::lab {
namespace {

bool OtherBits(const std::vector<AttackTrial>& trials) {
  return std::any_of(trials.begin(), trials.end(),
                     [](const AttackTrial& trial) { return trial.other_bits || trial.changed; });
}

// What an upcycled model says of itself.
nlohmann::json Provenance(const std::string& model) {
  std::ifstream file(std::filesystem::path(model) / "upcycle.json");
  if (!file) return nullptr;
  nlohmann::json derived = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  return derived.is_discarded() ? nlohmann::json(nullptr) : derived;
}

// What a server prepares on first use is paid for before anything is compared.
absl::Status WarmUp(const MoeExperimentOptions& options, client::Client* client) {
  DemoOptions few = options.demo;
  few.prompts.resize(std::min<size_t>(few.prompts.size(), 2));
  few.max_tokens = std::min<int64_t>(few.max_tokens, 4);
  return MeasureRequestRate(few, client).status();
}

}  // namespace

bool MoeArmResult::PromiseBroken() const {
  return deterministic() &&
         (neighbours.answers_with_other_bits() > 0 ||
          (attack.has_value() && (OtherBits(attack->attacked) || OtherBits(attack->ordinary))));
}

bool MoeExperimentResult::PromiseBroken() const {
  return std::any_of(arms.begin(), arms.end(),
                     [](const MoeArmResult& arm) { return arm.PromiseBroken(); });
}

const MoeArmResult* MoeExperimentResult::Find(const std::string& key) const {
  for (const MoeArmResult& arm : arms) {
    if (arm.arm.mode.key == key) return &arm;
  }
  return nullptr;
}

MoeArm ThroughputArm(const std::string& key, const ExpertLimit& limit) {
  DemoMode mode;
  mode.key = key;
  mode.title = limit.capacity_factor > 0 ? absl::StrCat("throughput, capacity ", limit.Name())
                                         : "throughput, no capacity limit";
  return {mode, limit};
}

MoeArm DeterministicArm(const std::string& key, const ExpertLimit& limit) {
  DemoMode mode;
  mode.key = key;
  mode.title = limit.capacity_factor > 0
                   ? absl::StrCat("deterministic, capacity ", limit.Name(), " for others")
                   : "deterministic, no capacity limit";
  mode.determinism = v1::DETERMINISM_PINNED;
  mode.background = v1::DETERMINISM_THROUGHPUT;
  return {mode, limit};
}

absl::StatusOr<MoeExperimentResult> RunMoeExperiment(
    const MoeExperimentOptions& options, const std::vector<MoeArm>& arms,
    const std::function<void(const std::string&)>& say) {
  const client::TimePoint start = client::Clock::now();
  MoeExperimentResult result;
  result.options = options;
  result.derived = Provenance(options.server.model);
  AttackSearchOptions search = options.search;
  double smallest = INFINITY;
  for (const MoeArm& arm : arms) {
    if (arm.limit.capacity_factor > 0) smallest = std::min(smallest, arm.limit.capacity_factor);
  }
  search.capacity_factor = std::isinf(smallest) ? 1 : smallest;
  result.options.search = search;

  std::unique_ptr<ServerProcess> server;
  std::string limit;
  for (const MoeArm& arm : arms) {
    if (server == nullptr || limit != arm.limit.Name()) {
      server.reset();
      auto started = StartMoeServer(options.server, arm.limit, say);
      if (!started.ok()) return started.status();
      server = *std::move(started);
      limit = arm.limit.Name();
      if (absl::Status status = WarmUp(options, server->client()); !status.ok()) return status;
    }
    client::Client* const client = server->client();
    if (result.arms.empty()) {
      auto model = client->GetModelInfo();
      if (!model.ok()) return model.status();
      result.model = *std::move(model);
      auto info = client->GetServerInfo();
      if (!info.ok()) return info.status();
      result.server = *std::move(info);
    }
    if (options.attack_trials > 0 && result.victims.empty()) {
      say(absl::StrFormat("searching %d tokens for those that crowd the victims' experts",
                          search.candidates));
      const client::TimePoint search_start = client::Clock::now();
      DemoOptions attacked = options.demo;
      attacked.model = options.server.model;
      attacked.prompts.resize(
          std::min(attacked.prompts.size(), static_cast<size_t>(options.victims)));
      auto victims = PrepareVictims(attacked, search, client);
      if (!victims.ok()) return victims.status();
      result.victims = *std::move(victims);
      result.search_seconds = client::SecondsBetween(search_start, client::Clock::now());
      say(absl::StrFormat("found in %.1f s", result.search_seconds));
    }
    MoeArmResult& added = result.arms.emplace_back();
    added.arm = arm;
    auto neighbours = RunAmongNeighbours(options.demo, arm.mode, arm.limit, client, say);
    if (!neighbours.ok()) return neighbours.status();
    added.neighbours = *std::move(neighbours);
    if (options.attack_trials > 0) {
      auto attack = RunAttack(options.demo, arm.mode, arm.limit, search, options.attack_trials,
                              result.victims, added.neighbours.alone, client, say);
      if (!attack.ok()) return attack.status();
      added.attack = *std::move(attack);
    }
  }
  result.wall_seconds = client::SecondsBetween(start, client::Clock::now());
  return result;
}

}  // namespace verbatim::lab

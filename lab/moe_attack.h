// An attack through experts' capacity: requests of one user that change the answers of another.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lab/demo_experiment.h"
#include "lab/moe_attack_search.h"
#include "lab/moe_neighbours.h"
#include "lab/moe_server.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

// A stranger's prompt and what it is attacked with.
struct Victim {
  std::string prompt;
  std::vector<int32_t> token_ids;  // of the prompt, as the server makes them
  CrowdingToken attack;
};

// The ids of every prompt from the server, the attacks from FindCrowdingTokens.
absl::StatusOr<std::vector<Victim>> PrepareVictims(const DemoOptions& options,
                                                   const AttackSearchOptions& search,
                                                   client::Client* client);

// One victim's answer beside attackers, or beside as many ordinary requests of the same lengths.
struct AttackTrial {
  size_t victim = 0;
  std::string text;
  bool changed = false;  // its tokens are not those of the answer alone
  bool other_bits = false;
  std::optional<int64_t> split;  // first token that differs
};

struct AttackResult {
  std::string key, title;
  v1::Determinism determinism = v1::DETERMINISM_THROUGHPUT;  // the victim's
  ExpertLimit limit;
  std::vector<AttackTrial> attacked, ordinary;
  ExpertSlots attacked_slots, ordinary_slots;
};

// Every victim `trials` times: attackers' requests in throughput mode, then at once the victim's,
// which therefore stands behind them in the batch; then the same with ordinary neighbours, whose
// prompts are pieces of the other victims'. `alone` holds the answers without neighbours. CANCELLED
// on Ctrl-C, INTERNAL when requests fail.
absl::StatusOr<AttackResult> RunAttack(const DemoOptions& options, const DemoMode& mode,
                                       const ExpertLimit& limit, const AttackSearchOptions& search,
                                       int64_t trials, const std::vector<Victim>& victims,
                                       const std::vector<AnswerAlone>& alone,
                                       client::Client* client,
                                       const std::function<void(const std::string&)>& say);

// {trials, successes, success_rate, interval (Wilson, 95 %), …} of the attack, and the same of the
// ordinary neighbours under "ordinary_neighbours".
nlohmann::json AttackJson(const AttackResult& result, const std::vector<Victim>& victims,
                          const std::vector<AnswerAlone>& alone);

int64_t Changed(const std::vector<AttackTrial>& trials);
// Those that begin with another token: moved by the prefill, not by one of many steps after it.
int64_t FirstTokenChanged(const std::vector<AttackTrial>& trials);

}  // namespace verbatim::lab

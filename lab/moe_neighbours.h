// The same prompts among changing neighbours, on a server whose experts may be limited.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lab/demo_experiment.h"
#include "lab/moe_server.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

// What a prompt is answered when nothing else is on the server.
struct AnswerAlone {
  std::string text;
  std::vector<int32_t> token_ids;
  std::string logits_sha256;
};

struct NeighboursResult {
  ExpertLimit limit;
  DemoModeResult among;            // mode, prompts, speed
  std::vector<AnswerAlone> alone;  // one for each prompt, in their order
  ExpertSlots slots;               // while the neighbours were there

  // Answers among neighbours that are not the prompt's answer alone, by their tokens, or by the
  // bits of their logits.
  int64_t answers_changed() const;
  int64_t answers_with_other_bits() const;
  // Prompts with at least one such answer.
  int64_t prompts_changed() const;
  // Earliest token at which an answer leaves the one alone.
  std::optional<int64_t> first_split() const;
};

// Asks every prompt once alone, then `options.repeats` times among other requests: as many at once
// as `options.concurrency`, in an order of their own, with `options.background_share` others in
// throughput mode. Caching of prefixes is off, so that every answer is computed whole. CANCELLED on
// Ctrl-C, INTERNAL when requests fail.
absl::StatusOr<NeighboursResult> RunAmongNeighbours(
    DemoOptions options, const DemoMode& mode, const ExpertLimit& limit, client::Client* client,
    const std::function<void(const std::string&)>& say);

// Counts, shares with 95 % Wilson intervals, slots, speed.
nlohmann::json NeighboursJson(const NeighboursResult& result);

}  // namespace verbatim::lab

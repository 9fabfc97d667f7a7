// Runs and counts of answers among neighbours.
#include "lab/moe_neighbours.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/report_json.h"
#include "client/statistics.h"
#include "lab/demo_block.h"

namespace verbatim::lab {
namespace {

using nlohmann::json;

json ProportionJson(int64_t part, int64_t whole) {
  const client::Interval interval = client::WilsonInterval(part, whole);
  return {{"share", whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0},
          {"wilson_95", {interval.low, interval.high}}};
}

absl::Status Complete(const DemoModeResult& result) {
  if (result.failed == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(result.mode.title, ": ", result.failed,
                                          " requests failed; the first: ", result.first_error));
}

}  // namespace

int64_t NeighboursResult::answers_changed() const {
  int64_t changed = 0;
  for (size_t p = 0; p < among.prompts.size(); ++p) {
    for (const auto& distinct : among.prompts[p].ByFrequency()) {
      if (distinct.token_ids != alone[p].token_ids) changed += distinct.count;
    }
  }
  return changed;
}

int64_t NeighboursResult::answers_with_other_bits() const {
  int64_t other = 0;
  for (size_t p = 0; p < among.prompts.size(); ++p) {
    for (const auto& distinct : among.prompts[p].ByFrequency()) {
      for (const auto& [hash, count] : distinct.hashes) {
        if (hash != alone[p].logits_sha256) other += count;
      }
    }
  }
  return other;
}

int64_t NeighboursResult::prompts_changed() const {
  int64_t changed = 0;
  for (size_t p = 0; p < among.prompts.size(); ++p) {
    const auto answers = among.prompts[p].ByFrequency();
    changed += std::any_of(answers.begin(), answers.end(), [&](const auto& distinct) {
      return distinct.token_ids != alone[p].token_ids;
    });
  }
  return changed;
}

std::optional<int64_t> NeighboursResult::first_split() const {
  std::optional<int64_t> first;
  for (size_t p = 0; p < among.prompts.size(); ++p) {
    for (const auto& distinct : among.prompts[p].ByFrequency()) {
      const auto split = client::FirstSplit(alone[p].token_ids, distinct.token_ids);
      if (split.has_value() && (!first.has_value() || *split < *first)) first = split;
    }
  }
  return first;
}

absl::StatusOr<NeighboursResult> RunAmongNeighbours(
    DemoOptions options, const DemoMode& mode, const ExpertLimit& limit, client::Client* client,
    const std::function<void(const std::string&)>& say) {
  options.disable_prefix_cache = true;
  NeighboursResult result;
  result.limit = limit;
  result.among.mode = mode;
  result.among.prompts.resize(options.prompts.size());

  const auto model = client->GetModelInfo();
  if (!model.ok()) return model.status();
  DemoOptions once = options;
  once.repeats = 1;
  once.blocks = 1;
  DemoModeResult alone;
  alone.mode = mode;
  alone.mode.key += ", alone";
  alone.mode.alone = true;
  alone.prompts.resize(options.prompts.size());
  absl::Status status = RunDemoBlock(once, INFINITY, 0, client, &alone, say);
  if (status.ok()) status = Complete(alone);
  if (!status.ok()) return status;
  for (const client::Completions& prompt : alone.prompts) {
    const auto answer = prompt.ByFrequency().front();
    result.alone.push_back({answer.text, answer.token_ids, answer.hashes.begin()->first});
  }

  const auto before = client->GetServerInfo();
  if (!before.ok()) return before.status();
  const int64_t blocks = options.repeats > 0 ? options.blocks : 0;
  for (int64_t block = 0; block < blocks; ++block) {
    status = RunDemoBlock(options, INFINITY, block, client, &result.among, say);
    if (status.ok()) status = Complete(result.among);
    if (!status.ok()) return status;
  }
  const auto after = client->GetServerInfo();
  if (!after.ok()) return after.status();
  result.slots.Add(*before, *after, model->experts_per_token());
  return result;
}

json NeighboursJson(const NeighboursResult& result) {
  const DemoModeResult& among = result.among;
  const auto prompts = static_cast<int64_t>(among.prompts.size());
  const json changed = ProportionJson(result.answers_changed(), among.requests);
  const json prompts_changed = ProportionJson(result.prompts_changed(), prompts);
  return {
      {"title", among.mode.title},
      {"determinism", client::DeterminismName(among.mode.determinism)},
      {"numerics_id", among.numerics_id},
      {"capacity_factor", result.limit.capacity_factor},
      {"overflow", result.limit.capacity_factor > 0 ? json(result.limit.overflow) : json(nullptr)},
      {"alone", false},
      {"prompts", prompts},
      {"requests", among.requests},
      {"background_requests", among.background_requests},
      {"unique_completions_max", among.unique_completions_max()},
      {"unique_completions_mean", among.unique_completions_mean()},
      {"unique_logit_hashes_max", among.unique_logit_hashes_max()},
      {"unique_logit_hashes_mean", among.unique_logit_hashes_mean()},
      {"prompts_with_several_completions", among.prompts_that_split()},
      {"answers_changed", result.answers_changed()},
      {"answers_changed_share", changed["share"]},
      {"answers_changed_wilson_95", changed["wilson_95"]},
      {"answers_with_other_bits", result.answers_with_other_bits()},
      {"prompts_changed", result.prompts_changed()},
      {"prompts_changed_wilson_95", prompts_changed["wilson_95"]},
      {"first_split_token", client::OptionalJson(result.first_split())},
      {"expert_slots", result.slots.ToJson()},
      {"output_tokens_per_s", among.tokens_per_s()},
  };
}

}  // namespace verbatim::lab

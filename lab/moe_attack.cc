// Sending attackers and victims.
#include "lab/moe_attack.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "client/report_json.h"
#include "client/statistics.h"
#include "lab/demo_block.h"
#include "model/checkpoint.h"

namespace verbatim::lab {
namespace {

using nlohmann::json;
using Say = std::function<void(const std::string&)>;

// A request that keeps its place in the batch as long as a victim does.
client::WorkItem Neighbour(const DemoOptions& options, const std::vector<int32_t>& ids) {
  client::WorkItem item;
  for (const int32_t id : ids) item.request.mutable_token_ids()->add_ids(id);
  item.request.mutable_sampling()->set_temperature(0);
  item.request.mutable_sampling()->set_ignore_eos(true);
  item.request.mutable_sampling()->set_max_tokens(options.max_tokens);
  item.request.set_determinism(v1::DETERMINISM_THROUGHPUT);
  item.request.set_disable_prefix_cache(true);
  return item;
}

// `count` tokens of another victim's prompt, over and over.
std::vector<int32_t> OrdinaryPrompt(const std::vector<Victim>& victims, size_t victim,
                                    int64_t neighbour, int64_t count) {
  const size_t others = std::max<size_t>(victims.size() - 1, 1);
  const size_t step = 1 + static_cast<size_t>(neighbour) % others;
  const std::vector<int32_t>& from = victims[(victim + step) % victims.size()].token_ids;
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(from[static_cast<size_t>(i) % from.size()]);
  return ids;
}

absl::StatusOr<AttackTrial> RunTrial(const std::vector<client::WorkItem>& items,
                                     const AnswerAlone& alone, client::Client* client) {
  client::LoadOptions load;
  load.max_concurrency = static_cast<int64_t>(items.size());
  load.closed_loop = true;
  load.interrupted = client::Interrupted;
  const client::LoadResult result = client::RunLoad(client, items, load);
  if (result.interrupted) return absl::CancelledError("interrupted");
  for (const client::CallRecord& record : result.records) {
    if (!record.status.ok()) return record.status;
  }
  const client::CallRecord& record = result.records.back();
  if (record.samples.empty() || !record.samples[0].finished.has_value()) {
    return absl::InternalError("an answer without an end");
  }
  const client::SampleRecord& sample = record.samples[0];
  AttackTrial trial;
  trial.text = sample.text;
  trial.changed = sample.token_ids != alone.token_ids;
  trial.other_bits = sample.finished->logits_sha256() != alone.logits_sha256;
  trial.split = client::FirstSplit(alone.token_ids, sample.token_ids);
  return trial;
}

json TrialsJson(const std::vector<AttackTrial>& trials, const ExpertSlots& slots) {
  const auto count = static_cast<int64_t>(trials.size());
  const client::Interval interval = client::WilsonInterval(Changed(trials), count);
  std::optional<int64_t> first;
  int64_t other_bits = 0;
  for (const AttackTrial& trial : trials) {
    other_bits += trial.other_bits;
    if (trial.split.has_value() && (!first.has_value() || *trial.split < *first)) {
      first = trial.split;
    }
  }
  return {{"trials", count},
          {"successes", Changed(trials)},
          {"success_rate",
           count > 0 ? static_cast<double>(Changed(trials)) / static_cast<double>(count) : 0},
          {"interval", {interval.low, interval.high}},
          {"with_other_bits", other_bits},
          {"with_another_first_token", FirstTokenChanged(trials)},
          {"first_split_token", client::OptionalJson(first)},
          {"expert_slots", slots.ToJson()}};
}

}  // namespace

int64_t Changed(const std::vector<AttackTrial>& trials) {
  return std::count_if(trials.begin(), trials.end(),
                       [](const AttackTrial& trial) { return trial.changed; });
}

int64_t FirstTokenChanged(const std::vector<AttackTrial>& trials) {
  return std::count_if(trials.begin(), trials.end(),
                       [](const AttackTrial& trial) { return trial.split == 0; });
}

absl::StatusOr<std::vector<Victim>> PrepareVictims(const DemoOptions& options,
                                                   const AttackSearchOptions& search,
                                                   client::Client* client) {
  std::vector<Victim> victims;
  std::vector<std::vector<int32_t>> ids;
  for (const std::string& prompt : options.prompts) {
    v1::TokenizeRequest request;
    if (options.chat) {
      v1::ChatMessage* message = request.mutable_chat()->add_messages();
      message->set_role("user");
      message->set_content(prompt);
    } else {
      request.set_text(prompt);
    }
    const auto tokens = client->Tokenize(request);
    if (!tokens.ok()) return tokens.status();
    ids.emplace_back(tokens->ids().begin(), tokens->ids().end());
    victims.push_back({prompt, ids.back(), {}});
  }
  auto checkpoint = model::Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return checkpoint.status();
  const auto attacks = FindCrowdingTokens(**checkpoint, ids, search);
  if (!attacks.ok()) return attacks.status();
  for (size_t v = 0; v < victims.size(); ++v) victims[v].attack = (*attacks)[v];
  return victims;
}

absl::StatusOr<AttackResult> RunAttack(const DemoOptions& options, const DemoMode& mode,
                                       const ExpertLimit& limit, const AttackSearchOptions& search,
                                       int64_t trials, const std::vector<Victim>& victims,
                                       const std::vector<AnswerAlone>& alone,
                                       client::Client* client, const Say& say) {
  AttackResult result;
  result.key = mode.key;
  result.title = mode.title;
  result.determinism = mode.determinism;
  result.limit = limit;
  DemoOptions uncached = options;
  uncached.disable_prefix_cache = true;
  const auto model = client->GetModelInfo();
  if (!model.ok()) return model.status();
  for (const bool attack : {true, false}) {
    const auto before = client->GetServerInfo();
    if (!before.ok()) return before.status();
    std::vector<AttackTrial>& done = attack ? result.attacked : result.ordinary;
    for (size_t v = 0; v < victims.size(); ++v) {
      for (int64_t t = 0; t < trials; ++t) {
        std::vector<client::WorkItem> items;
        for (int64_t a = 0; a < search.attackers; ++a) {
          const std::vector<int32_t> ids =
              attack ? std::vector<int32_t>(static_cast<size_t>(search.attacker_tokens),
                                            victims[v].attack.token)
                     : OrdinaryPrompt(victims, v, a + t, search.attacker_tokens);
          items.push_back(Neighbour(options, ids));
        }
        client::WorkItem& victim = items.emplace_back();
        victim.request = MeasuredRequest(uncached, victims[v].prompt, mode.determinism);
        auto trial = RunTrial(items, alone[v], client);
        if (!trial.ok()) return trial.status();
        trial->victim = v;
        done.push_back(*std::move(trial));
      }
    }
    const auto after = client->GetServerInfo();
    if (!after.ok()) return after.status();
    (attack ? result.attacked_slots : result.ordinary_slots)
        .Add(*before, *after, model->experts_per_token());
    say(absl::StrFormat("%-20s %s: %d of %d answers changed", mode.key,
                        attack ? "attackers" : "ordinary neighbours", Changed(done), done.size()));
  }
  return result;
}

json AttackJson(const AttackResult& result, const std::vector<Victim>& victims,
                const std::vector<AnswerAlone>& alone) {
  json data = TrialsJson(result.attacked, result.attacked_slots);
  data["title"] = result.title;
  data["victims"] = victims.size();
  data["determinism_of_victims"] = client::DeterminismName(result.determinism);
  data["capacity_factor"] = result.limit.capacity_factor;
  data["overflow"] = result.limit.capacity_factor > 0 ? json(result.limit.overflow) : json(nullptr);
  data["ordinary_neighbours"] = TrialsJson(result.ordinary, result.ordinary_slots);
  json list = json::array();
  for (const AttackTrial& trial : result.attacked) {
    list.push_back({{"prompt", victims[trial.victim].prompt},
                    {"changed", trial.changed},
                    {"other_bits", trial.other_bits},
                    {"split_token", client::OptionalJson(trial.split)},
                    {"alone", alone[trial.victim].text},
                    {"attacked", trial.text}});
  }
  data["answers"] = std::move(list);
  return data;
}

}  // namespace verbatim::lab

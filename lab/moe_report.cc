// Writing down what happened to answers of a mixture of experts.
#include "lab/moe_report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/report_json.h"
#include "client/statistics.h"
#include "lab/demo_report.h"

namespace verbatim::lab {
namespace {

using nlohmann::json;

// "12 of 48 (25 %, 15 to 39)".
std::string Proportion(int64_t part, int64_t whole) {
  if (whole == 0) return "none sent";
  const client::Interval interval = client::WilsonInterval(part, whole);
  return absl::StrFormat("%d of %d (%.0f to %.0f %%)", part, whole, 100 * interval.low,
                         100 * interval.high);
}

std::string Slots(const ExpertSlots& slots) {
  if (slots.rerouted > 0) {
    return absl::StrFormat("%.1f + %.1f moved", 100 * slots.lost_share(),
                           100 * slots.rerouted_share());
  }
  return absl::StrFormat("%.1f", 100 * slots.lost_share());
}

json PromptJson(const MoeExperimentResult& result, size_t index) {
  json modes = json::object();
  for (const MoeArmResult& arm : result.arms) {
    json completions = client::CompletionsJson(arm.neighbours.among.prompts[index]);
    completions["alone"] = arm.neighbours.alone[index].text;
    modes[arm.arm.mode.key] = std::move(completions);
  }
  return {{"prompt", result.options.demo.prompts[index]}, {"modes", std::move(modes)}};
}

json SettingsJson(const MoeExperimentResult& result) {
  const DemoOptions& demo = result.options.demo;
  const AttackSearchOptions& search = result.options.search;
  return {{"repeats", demo.repeats},
          {"max_tokens", demo.max_tokens},
          {"temperature", 0},
          {"concurrency", demo.concurrency},
          {"background_share", demo.background_share},
          {"blocks", demo.blocks},
          {"seed", demo.seed},
          {"dtype", result.options.server.dtype},
          {"prefix_cache", "off for every request"},
          {"attackers", search.attackers},
          {"attacker_tokens", search.attacker_tokens},
          {"candidates", search.candidates},
          {"attack_trials_per_victim", result.options.attack_trials}};
}

json VictimsJson(const std::vector<Victim>& victims) {
  json list = json::array();
  for (const Victim& victim : victims) {
    list.push_back({{"prompt", victim.prompt},
                    {"prompt_tokens", victim.token_ids.size()},
                    {"attack_token", victim.attack.token},
                    {"crowding", victim.attack.crowding},
                    {"mean_crowding_of_candidates", victim.attack.mean_crowding}});
  }
  return list;
}

std::string AboutArm(const MoeArmResult& arm) {
  const NeighboursResult& seen = arm.neighbours;
  const DemoModeResult& among = seen.among;
  std::string text = absl::StrCat(among.mode.title, ":");
  if (among.requests > 0) {
    absl::StrAppendFormat(&text,
                          " %d of %d answers were not the prompt's answer alone; up to %d texts "
                          "and %d sets of logit bits for one prompt",
                          seen.answers_changed(), among.requests, among.unique_completions_max(),
                          among.unique_logit_hashes_max());
    const auto split = seen.first_split();
    if (split.has_value()) absl::StrAppendFormat(&text, ", the earliest split at token %d", *split);
    if (seen.slots.lost + seen.slots.rerouted > 0) {
      absl::StrAppendFormat(&text,
                            "; of all tokens' experts %.1f %% were lost and %.1f %% replaced",
                            100 * seen.slots.lost_share(), 100 * seen.slots.rerouted_share());
    }
    absl::StrAppend(&text, ".");
  }
  if (arm.attack.has_value()) {
    const AttackResult& attack = *arm.attack;
    absl::StrAppendFormat(
        &text,
        " Attackers changed the victim's answer in %d of %d trials (its first token in %d), "
        "ordinary neighbours of the same lengths in %d of %d (%d).",
        Changed(attack.attacked), attack.attacked.size(), FirstTokenChanged(attack.attacked),
        Changed(attack.ordinary), attack.ordinary.size(), FirstTokenChanged(attack.ordinary));
  }
  if (arm.PromiseBroken()) {
    absl::StrAppend(&text, " DETERMINISTIC MODE BROKE ITS PROMISE: logit bits moved.");
  }
  return text;
}

}  // namespace

std::vector<std::string> ExplainMoe(const MoeExperimentResult& result) {
  std::vector<std::string> sentences;
  if (!result.derived.is_null()) {
    sentences.push_back(
        "The model was derived from a dense one by upcycling; it was not trained as a mixture of "
        "experts. How often answers change depends on the model; that they can does not.");
  }
  for (const MoeArmResult& arm : result.arms) sentences.push_back(AboutArm(arm));
  return sentences;
}

json MoeJson(const MoeExperimentResult& result, const Machine& machine) {
  json modes = json::object(), attack = json::object(), order = json::array();
  std::string numerics_id;
  for (const MoeArmResult& arm : result.arms) {
    const std::string& key = arm.arm.mode.key;
    order.push_back(key);
    modes[key] = NeighboursJson(arm.neighbours);
    if (arm.deterministic()) numerics_id = arm.neighbours.among.numerics_id;
    if (arm.attack.has_value()) {
      attack[key] = AttackJson(*arm.attack, result.victims, arm.neighbours.alone);
    }
  }
  json prompts = json::array();
  for (size_t i = 0; i < result.options.demo.prompts.size(); ++i) {
    prompts.push_back(PromptJson(result, i));
  }
  if (!result.victims.empty()) {
    attack["victims"] = VictimsJson(result.victims);
    attack["search_seconds"] = result.search_seconds;
  }
  return {
      {"date", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone())},
      {"version", result.server.version()},
      {"backend", result.server.backend()},
      {"numerics_id", numerics_id},
      {"model", ModelJson(result.model)},
      {"derived", result.derived},
      {"machine", MachineJson(machine)},
      {"settings", SettingsJson(result)},
      {"wall_seconds", result.wall_seconds},
      {"mode_order", std::move(order)},
      {"modes", std::move(modes)},
      {"attack", std::move(attack)},
      {"deterministic_promise_kept", !result.PromiseBroken()},
      {"explanation", ExplainMoe(result)},
      {"prompts", std::move(prompts)},
  };
}

std::string MoeTable(const MoeExperimentResult& result) {
  const DemoOptions& demo = result.options.demo;
  std::string out = absl::StrFormat(
      "\n%s: %d experts in a layer, %d for a token%s\n%d prompts, %d times each per mode, "
      "temperature 0, at most %d tokens\n\n",
      result.model.served_model_name(), result.model.num_experts(),
      result.model.experts_per_token(),
      result.derived.is_null() ? "" : "; derived by upcycling, not trained", demo.prompts.size(),
      demo.repeats, demo.max_tokens);
  constexpr char kRow[] = "%-44s %-8s %-8s %-27s %-6s %-20s %-26s %-26s\n";
  absl::StrAppendFormat(&out, kRow, "", "logit", "", "answers", "first", "experts lost", "attack",
                        "ordinary neighbours");
  absl::StrAppendFormat(&out, kRow, "mode", "hashes", "texts", "changed", "split", "%", "succeeded",
                        "changed an answer");
  absl::StrAppend(&out, std::string(168, '-'), "\n");
  for (const MoeArmResult& arm : result.arms) {
    const NeighboursResult& seen = arm.neighbours;
    const auto split = seen.first_split();
    std::string attacked = "-", ordinary = "-";
    if (arm.attack.has_value()) {
      attacked = Proportion(Changed(arm.attack->attacked),
                            static_cast<int64_t>(arm.attack->attacked.size()));
      ordinary = Proportion(Changed(arm.attack->ordinary),
                            static_cast<int64_t>(arm.attack->ordinary.size()));
    }
    absl::StrAppendFormat(
        &out, kRow, seen.among.mode.title, absl::StrCat(seen.among.unique_logit_hashes_max()),
        absl::StrCat(seen.among.unique_completions_max()),
        Proportion(seen.answers_changed(), seen.among.requests),
        split.has_value() ? absl::StrCat(*split) : "never", Slots(seen.slots), attacked, ordinary);
  }
  absl::StrAppend(
      &out,
      "\nlogit hashes and texts: the most that one prompt got. changed: not the tokens of the "
      "prompt's answer alone\non the same server; in brackets 95 % Wilson intervals\n\n");
  for (const std::string& sentence : ExplainMoe(result)) absl::StrAppend(&out, sentence, "\n");
  return out;
}

}  // namespace verbatim::lab

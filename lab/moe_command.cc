// Flags, files and exit status of the experiments on mixtures of experts.
#include "lab/moe_command.h"

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/background_traffic.h"
#include "client/command.h"
#include "flags/flag_set.h"
#include "lab/demo_prompts.h"
#include "lab/experiment_command.h"
#include "lab/machine.h"
#include "lab/moe_experiment.h"
#include "lab/moe_page.h"
#include "lab/moe_report.h"

namespace verbatim::lab {
namespace {

enum class Kind { kDemo, kStudy, kAttack };

struct Flags {
  explicit Flags(Kind kind);
  flags::FlagSet Set();
  absl::Status Resolve();
  std::vector<MoeArm> Arms() const;

  const Kind kind;
  std::string name, summary;
  MoeExperimentOptions options;
  std::string limits, output, page, prompts_file;
  int64_t num_prompts = 8;
  bool text = false;
  std::vector<ExpertLimit> parsed;
};

Flags::Flags(Kind which) : kind(which) {
  options.demo.concurrency = 12;
  options.demo.max_tokens = 24;
  options.demo.repeats = 8;
  options.demo.blocks = 1;
  options.demo.background_share = 0.5;
  switch (kind) {
    case Kind::kDemo:
      name = "moe-demo";
      limits = "1.25:drop";
      num_prompts = 12;
      summary =
          "The same prompts among changing neighbours, and attacked: in throughput mode with a "
          "capacity limit on experts, in throughput mode without, and in deterministic mode beside "
          "requests that are limited.";
      break;
    case Kind::kStudy:
      name = "moe-study";
      limits = "off,1.75,1.5,1.25,1,1.5:next,1.25:next,1:next";
      options.attack_trials = 0;
      summary =
          "The same prompts among changing neighbours under several capacity limits, in throughput "
          "and in deterministic mode: answers that change, experts lost, first split.";
      break;
    case Kind::kAttack:
      name = "moe-attack";
      limits = "off,1.75,1.5,1.25,1,1.25:next";
      options.demo.repeats = 0;
      num_prompts = 16;
      options.victims = 16;
      summary =
          "Requests chosen to fill the experts that a stranger's prompt needs (Hayes, Shumailov "
          "and Yona, 2024), under several capacity limits, in throughput and deterministic mode; "
          "beside them as many ordinary requests.";
      break;
  }
}

flags::FlagSet Flags::Set() {
  flags::FlagSet set(absl::StrCat("verbatim lab ", name, " --model DIR [flags]"), summary);
  set.Add("model", &options.server.model, "checkpoint of a mixture of experts; required");
  set.Add("output", &output, "JSON file to write");
  if (kind == Kind::kDemo) {
    set.Add("page", &page, "HTML file to write; it opens offline");
    set.Add("limit", &limits, "the capacity limit: a factor, then :drop or :next");
  } else {
    set.Add("limits", &limits,
            "capacity limits, separated by commas: off, or a factor, then :drop or :next");
  }
  if (kind != Kind::kAttack) {
    set.Add("repeats", &options.demo.repeats, "times each prompt is sent in each mode");
    set.Add("concurrency", &options.demo.concurrency, "requests in flight at once");
    set.Add("background-share", &options.demo.background_share,
            "requests of other traffic for each measured one");
  }
  set.Add("max-tokens", &options.demo.max_tokens, "most output tokens of an answer");
  set.Add("num-prompts", &num_prompts, "use only the first so many prompts; 0: all");
  set.Add("prompts-file", &prompts_file, "own prompts, one a line");
  set.Add("text", &text, "send prompts as plain text, for models without a chat template");
  set.Add("dtype", &options.server.dtype, "activations in throughput mode: bfloat16 or float32");
  set.Add("kv-cache-bytes", &options.server.kv_cache_bytes, "as for verbatim serve");
  set.Add("seed", &options.demo.seed, "seed of order, other traffic and candidates");
  set.Add("device", &options.server.device, "of the servers, as for verbatim serve");
  set.Add("server-binary", &options.server.server_binary,
          "serve with this program instead of this one");
  if (kind != Kind::kStudy) {
    set.Add("attackers", &options.search.attackers, "requests sent before the victim's");
    set.Add("attacker-tokens", &options.search.attacker_tokens, "of the prompt of each");
    set.Add("candidates", &options.search.candidates, "tokens that the search tries");
    set.Add("trials", &options.attack_trials, "attacks on each victim in each mode");
    set.Add("victims", &options.victims, "attack only the first so many prompts");
  }
  return set;
}

absl::Status Flags::Resolve() {
  if (options.server.model.empty()) return client::BadFlag("model", "is required");
  DemoOptions& demo = options.demo;
  const int64_t least_repeats = kind == Kind::kAttack ? 0 : 1;
  const int64_t least_trials = kind == Kind::kStudy ? 0 : 1;
  if (absl::Status status = client::FirstError(
          {client::CheckRange("repeats", demo.repeats, least_repeats, int64_t{100'000}),
           client::CheckRange("max-tokens", demo.max_tokens, int64_t{1}, int64_t{1} << 20),
           client::CheckRange("concurrency", demo.concurrency, int64_t{1}, int64_t{1024}),
           client::CheckRange("background-share", demo.background_share, 0.0, 100.0),
           client::CheckRange("num-prompts", num_prompts, int64_t{0}, int64_t{100'000}),
           client::CheckRange("attackers", options.search.attackers, int64_t{1}, int64_t{1023}),
           client::CheckRange("attacker-tokens", options.search.attacker_tokens, int64_t{1},
                              int64_t{1} << 20),
           client::CheckRange("candidates", options.search.candidates, int64_t{1},
                              int64_t{1} << 20),
           client::CheckRange("trials", options.attack_trials, least_trials, int64_t{100'000}),
           client::CheckRange("victims", options.victims, int64_t{1}, int64_t{100'000})});
      !status.ok()) {
    return status;
  }
  for (const absl::string_view part : absl::StrSplit(limits, ',')) {
    const auto limit = ParseExpertLimit(std::string(part));
    const char* const flag = kind == Kind::kDemo ? "limit" : "limits";
    if (!limit.ok()) return client::BadFlag(flag, std::string(limit.status().message()));
    parsed.push_back(*limit);
  }
  if (kind == Kind::kDemo && (parsed.size() != 1 || parsed[0].capacity_factor == 0)) {
    return client::BadFlag("limit", "must be one factor");
  }
  demo.prompts = DemoPrompts();
  if (!prompts_file.empty()) {
    auto prompts = client::ReadPrompts(prompts_file);
    if (!prompts.ok()) {
      return client::BadFlag("prompts-file", std::string(prompts.status().message()));
    }
    demo.prompts = *std::move(prompts);
  }
  if (num_prompts > 0 && num_prompts < static_cast<int64_t>(demo.prompts.size())) {
    demo.prompts.resize(static_cast<size_t>(num_prompts));
  }
  demo.chat = !text;
  options.search.seed = demo.seed;
  options.server.max_num_seqs =
      std::max<int64_t>(64, std::max(demo.concurrency, options.search.attackers + 1));
  return absl::OkStatus();
}

std::vector<MoeArm> Flags::Arms() const {
  if (kind == Kind::kDemo) {
    return {ThroughputArm("throughput", {}), ThroughputArm("throughput_capacity", parsed[0]),
            DeterministicArm("deterministic", parsed[0])};
  }
  std::vector<MoeArm> arms;
  for (const ExpertLimit& limit : parsed) {
    const std::string name = limit.capacity_factor > 0
                                 ? absl::StrCat(limit.capacity_factor, "_", limit.overflow)
                                 : std::string("off");
    arms.push_back(ThroughputArm(absl::StrCat("throughput_", name), limit));
    arms.push_back(DeterministicArm(absl::StrCat("deterministic_", name), limit));
  }
  return arms;
}

absl::StatusOr<int> Run(const Flags& flags) {
  const auto result = RunMoeExperiment(flags.options, flags.Arms(), Say);
  if (!result.ok()) return result.status();
  const nlohmann::json data = MoeJson(*result, DescribeMachine());
  std::fputs(MoeTable(*result).c_str(), stdout);
  std::fflush(stdout);
  absl::Status written =
      WriteResults(data, flags.output, flags.page.empty() ? "" : MoePage(data), flags.page);
  if (!written.ok()) return written;
  if (result->PromiseBroken()) {
    std::fprintf(stderr, "\nFAILED: an answer of deterministic mode changed its logit bits\n");
    return 1;
  }
  return 0;
}

int RunKind(Kind kind, int argc, char** argv) {
  Flags flags(kind);
  return RunExperimentCommand(absl::StrCat("lab ", flags.name), flags, Run, argc, argv);
}

}  // namespace

int RunMoeDemo(int argc, char** argv) { return RunKind(Kind::kDemo, argc, argv); }
int RunMoeStudy(int argc, char** argv) { return RunKind(Kind::kStudy, argc, argv); }
int RunMoeAttack(int argc, char** argv) { return RunKind(Kind::kAttack, argc, argv); }

}  // namespace verbatim::lab

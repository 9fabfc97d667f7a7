// Flags and output of `verbatim replay`.
#include "replay/replay_command.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flags/flag_set.h"
#include "kernels/device/open_backend.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"
#include "replay/replayer.h"
#include "trace/trace.h"

namespace verbatim::replay {
namespace {

struct Options {
  std::string model, device;
  uint64_t filler_seed = 1;
  bool ignore_decisions = false, json = false;
};

int Failed(const absl::Status& status) {
  std::fprintf(stderr, "verbatim replay: %s\n", std::string(status.message()).c_str());
  return 1;
}

// Of a mixture of experts, what became of the slots of the answer's rows.
void PrintExperts(const trace::Trace& trace) {
  if (trace.mixture.num_experts == 0) return;
  int64_t slots = 0, lost = 0, wanted = 0;
  for (const trace::Step& step : trace.steps) {
    for (const trace::LayerRouting& layer : step.routing) {
      slots += static_cast<int64_t>(layer.experts.size());
      lost += std::count(layer.experts.begin(), layer.experts.end(), -1);
      wanted += static_cast<int64_t>(layer.wanted.size());
    }
  }
  std::printf(
      "experts     %d of %d a token in %zu layers; of %lld slots %lld lost, %lld rerouted\n",
      trace.mixture.experts_per_token, trace.mixture.num_experts, trace.mixture.layers.size(),
      static_cast<long long>(slots), static_cast<long long>(lost),
      static_cast<long long>(wanted - lost));
}

// What the answer went through, for people.
void PrintTrace(const trace::Trace& trace) {
  int64_t rows = 0, most = 0, cached_by_others = 0;
  for (const trace::Step& step : trace.steps) {
    rows += step.rows();
    most = std::max(most, step.rows());
  }
  cached_by_others = static_cast<int64_t>(trace.runs.size()) - trace.own_runs;
  std::printf("answer      %d prompt and %lld output tokens, %s on %s\n", trace.prompt_tokens,
              static_cast<long long>(trace.output_tokens()),
              std::string(NameOf(trace.determinism)).c_str(), trace.identity.backend.c_str());
  std::printf("steps       %zu, %.1f rows each on average, at most %lld\n", trace.steps.size(),
              trace.steps.empty()
                  ? 0.0
                  : static_cast<double>(rows) / static_cast<double>(trace.steps.size()),
              static_cast<long long>(most));
  PrintExperts(trace);
  std::printf(
      "pages       %d positions from the prefix cache, %lld other runs wrote them; "
      "%d preemptions\n",
      trace.cached_tokens, static_cast<long long>(cached_by_others), trace.preemptions);
}

void PrintJson(const trace::Trace& trace, const ReplayResult& result) {
  nlohmann::json out = {{"reproduced", result.reproduced()},
                        {"output_tokens", trace.output_tokens()},
                        {"steps", trace.steps.size()},
                        {"recorded_logits_sha256", trace.logits_sha256},
                        {"replayed_logits_sha256", result.logits_sha256},
                        {"decision_difference", result.decision_difference},
                        {"routing_difference", result.routing_difference},
                        {"first_different_token", nullptr}};
  if (result.first_difference.has_value()) {
    out["first_different_token"] = *result.first_difference;
    if (result.first_different_layer >= 0) {
      out["first_different_layer"] = result.first_different_layer;
    }
    out["first_different_step"] = trace.steps[result.rows[*result.first_difference].step].number;
  }
  std::printf("%s\n", out.dump(2, ' ', true).c_str());
}

void PrintResult(const trace::Trace& trace, const ReplayResult& result, absl::Duration took) {
  if (!result.decision_difference.empty()) {
    std::printf("decisions   differ: %s\n", result.decision_difference.c_str());
    if (result.rows.empty()) {
      std::printf("            not replayed; --ignore-decisions tries it all the same\n");
      return;
    }
  }
  if (!result.routing_difference.empty()) {
    std::printf("experts     differ: %s\n", result.routing_difference.c_str());
  }
  std::printf("recorded    %s\nreplayed    %s\n", trace.logits_sha256.c_str(),
              result.logits_sha256.c_str());
  if (!result.first_difference.has_value()) {
    if (!result.routing_difference.empty()) {
      std::printf("result      not reproduced: equal bits, but not the recorded experts\n");
      return;
    }
    std::printf("result      reproduced: all %lld logit rows have the recorded bits (%.2f s)\n",
                static_cast<long long>(trace.output_tokens()), absl::ToDoubleSeconds(took));
    return;
  }
  const int64_t token = *result.first_difference;
  const trace::Step& step = trace.steps[result.rows[token].step];
  std::printf(
      "result      not reproduced: output token %lld, step %lld (%lld rows) is the first "
      "whose logits have other bits\n",
      static_cast<long long>(token), static_cast<long long>(step.number),
      static_cast<long long>(step.rows()));
  if (result.first_different_layer >= 0) {
    std::printf("            layer %lld is the first whose output differs there\n",
                static_cast<long long>(result.first_different_layer));
  }
}

}  // namespace

int RunReplay(int argc, char** argv) {
  Options options;
  flags::FlagSet flags(
      "verbatim replay --model PATH [flags] TRACE.json",
      "Repeats an answer from its trace (verbatim generate --trace): every step in the shape that "
      "it had, with fillers in place of the other requests, and compares the bits of every logit "
      "row with the recorded ones. Needs the same model, version and kind of processor.");
  flags.Add("model", &options.model, "the model that the answer came from; required");
  flags.Add("device", &options.device,
            "cpu, cuda or cuda:N; default: what the trace was made on, the first GPU if on one");
  flags.Add("filler-seed", &options.filler_seed,
            "of the fillers' token ids, which must not matter");
  flags.Add("ignore-decisions", &options.ignore_decisions,
            "replay although this program would choose other kernels than the trace names");
  flags.Add("json", &options.json, "print the result as JSON");
  const auto positional = flags.Parse(argc, argv);
  if (positional.ok() && flags.help_requested()) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  std::string usage = positional.ok() ? "" : std::string(positional.status().message());
  if (usage.empty() && !options.device.empty()) {
    usage = std::string(kernels::ParseDevice(options.device).status().message());
  }
  if (usage.empty() && options.model.empty()) usage = "--model: is required";
  if (usage.empty() && positional->size() != 1) usage = "needs exactly one trace; see --help";
  if (!usage.empty()) {
    std::fprintf(stderr, "verbatim replay: %s\n", usage.c_str());
    return 2;
  }
  const auto trace = trace::ReadTraceFile(positional->front());
  if (!trace.ok()) return Failed(trace.status());
  if (!options.json) PrintTrace(*trace);
  if (!trace->replayable()) {
    return Failed(absl::FailedPreconditionError(
        absl::StrCat("the trace cannot be replayed: ", trace->not_replayable)));
  }
  const auto checkpoint = model::Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return Failed(checkpoint.status());
  auto replayer =
      Replayer::Create(**checkpoint, (*checkpoint)->WeightsFingerprint(), *trace, options.device);
  if (!replayer.ok()) return Failed(replayer.status());
  const absl::Time start = absl::Now();
  const auto result = (*replayer)->Replay(
      *trace, {.filler_seed = options.filler_seed, .ignore_decisions = options.ignore_decisions});
  if (!result.ok()) return Failed(result.status());
  if (options.json) {
    PrintJson(*trace, *result);
  } else {
    PrintResult(*trace, *result, absl::Now() - start);
  }
  return result->reproduced() ? 0 : 1;
}

}  // namespace verbatim::replay

// Flags, files and exit status of `verbatim lab demo`.
#include "lab/demo_command.h"

#include <cstdio>
#include <string>

#include "client/background_traffic.h"
#include "client/command.h"
#include "flags/flag_set.h"
#include "lab/demo_experiment.h"
#include "lab/demo_page.h"
#include "lab/demo_prompts.h"
#include "lab/demo_report.h"
#include "lab/experiment_command.h"
#include "lab/machine.h"

namespace verbatim::lab {
namespace {

struct Flags {
  DemoOptions options;
  std::string output, page, prompts_file;
  int64_t num_prompts = 0;
  bool quick = false;

  flags::FlagSet Set();
  absl::Status Resolve();
};

flags::FlagSet Flags::Set() {
  flags::FlagSet set("verbatim lab demo --model FILE [flags]",
                     "Starts servers on this machine and asks them the same prompts many times, in "
                     "throughput mode, in deterministic mode and one at a time, while other "
                     "traffic comes and goes; compares texts, logit bits and speed.");
  set.Add("model", &options.model, "checkpoint to serve; required");
  set.Add("output", &output, "JSON file to write");
  set.Add("page", &page, "HTML file to write; it opens offline");
  set.Add("quick", &quick, "a small version: 4 prompts, 4 repeats, 16 tokens, 1 block");
  set.Add("repeats", &options.repeats, "times each prompt is sent in each mode");
  set.Add("max-tokens", &options.max_tokens, "most output tokens of an answer");
  set.Add("num-prompts", &num_prompts, "use only the first so many prompts; 0: all");
  set.Add("prompts-file", &prompts_file, "own prompts, one a line");
  set.Add("concurrency", &options.concurrency, "requests in flight at once");
  set.Add("background-share", &options.background_share,
          "requests of other traffic for each measured one");
  set.Add("request-rate", &options.request_rate,
          "Poisson arrivals per second; 0: twice what the server can serve");
  set.Add("blocks", &options.blocks, "how often the modes take turns");
  set.Add("seed", &options.seed, "seed of order, arrivals and other traffic");
  set.Add("device", &options.device, "of the servers, as for verbatim serve");
  set.Add("server-binary", &options.server_binary, "serve with this program instead of this one");
  return set;
}

absl::Status Flags::Resolve() {
  if (options.model.empty()) return client::BadFlag("model", "is required");
  if (quick) {
    const DemoOptions defaults;
    if (options.repeats == defaults.repeats) options.repeats = 4;
    if (options.max_tokens == defaults.max_tokens) options.max_tokens = 16;
    if (options.blocks == defaults.blocks) options.blocks = 1;
    if (num_prompts == 0) num_prompts = 4;
  }
  if (options.repeats < 1) return client::BadFlag("repeats", "must be at least 1");
  if (options.max_tokens < 1) return client::BadFlag("max-tokens", "must be at least 1");
  if (options.concurrency < 1) return client::BadFlag("concurrency", "must be at least 1");
  if (options.blocks < 1 || options.blocks > options.repeats) {
    return client::BadFlag("blocks", "must be between 1 and --repeats");
  }
  if (!(options.background_share >= 0 && options.background_share <= 100)) {
    return client::BadFlag("background-share", "must be in [0, 100]");
  }
  if (!(options.request_rate >= 0)) return client::BadFlag("request-rate", "is negative");
  if (num_prompts < 0) return client::BadFlag("num-prompts", "is negative");
  options.prompts = DemoPrompts();
  if (!prompts_file.empty()) {
    auto prompts = client::ReadPrompts(prompts_file);
    if (!prompts.ok())
      return client::BadFlag("prompts-file", std::string(prompts.status().message()));
    options.prompts = *std::move(prompts);
  }
  if (num_prompts > 0 && num_prompts < static_cast<int64_t>(options.prompts.size())) {
    options.prompts.resize(static_cast<size_t>(num_prompts));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Run(const Flags& flags) {
  const auto result = RunDemoExperiment(flags.options, Say);
  if (!result.ok()) return result.status();
  const nlohmann::json data = DemoJson(*result, DescribeMachine());
  std::fputs(DemoTable(*result).c_str(), stdout);
  std::fflush(stdout);
  absl::Status written =
      WriteResults(data, flags.output, flags.page.empty() ? "" : DemoPage(data), flags.page);
  if (!written.ok()) return written;
  for (const DemoModeResult& mode : result->modes) {
    if (mode.failed > 0) {
      std::fprintf(stderr, "%s: %lld requests failed; the first: %s\n", mode.mode.key.c_str(),
                   static_cast<long long>(mode.failed), mode.first_error.c_str());
    }
  }
  if (PromiseBroken(*result)) {
    std::fprintf(stderr,
                 "\nFAILED: deterministic mode gave more than one logit hash for a prompt\n");
    return 1;
  }
  return 0;
}

}  // namespace

int RunDemo(int argc, char** argv) {
  Flags flags;
  return RunExperimentCommand("lab demo", flags, Run, argc, argv);
}

}  // namespace verbatim::lab

// `verbatim conformance`: runs the suite, prints its tables and writes its results.
#include "conformance/conformance_command.h"

#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/command.h"
#include "client/files.h"
#include "client/interrupt.h"
#include "client/report_json.h"
#include "conformance/report.h"
#include "conformance/server_trials.h"
#include "conformance/suite_presets.h"
#include "flags/flag_set.h"
#include "kernels/device/open_backend.h"
#include "lab/machine.h"

namespace verbatim::conformance {
namespace {

struct Flags {
  std::string model, output = "out/conformance.json", only, policies, synthetic_models,
                     server_binary, device = "cpu";
  bool short_form = false, servers = true, synthetic = true;
  uint64_t seed = 1;

  flags::FlagSet Set();
};

flags::FlagSet Flags::Set() {
  flags::FlagSet set(
      "verbatim conformance [--model FILE] [flags]",
      "Asks the same requests alone and under every perturbation that a deterministic policy "
      "promises to withstand, and compares the bits of every logit row and log-probability. A "
      "synthetic model takes most of the work; with --model a file takes its share.");
  set.Add("model", &model, "checkpoint to try besides the synthetic model, also by real servers");
  set.Add("synthetic", &synthetic, "try the synthetic model");
  set.Add("synthetic-models", &synthetic_models,
          "only synthetic models whose name contains this, such as moe");
  set.Add("short", &short_form, "seconds instead of minutes: less of every axis");
  set.Add("output", &output, "JSON file to write");
  set.Add("device", &device,
          absl::StrCat(kernels::kDeviceHelp,
                       "; on a GPU, PORTABLE answers are also compared with this machine's "
                       "processor, under \"instruction set\" and in combinations"));
  set.Add("only", &only, "only perturbations whose name contains this");
  set.Add("policies", &policies, "only policies whose name begins with this, such as portable");
  set.Add("servers", &servers, "with --model: also start server processes");
  set.Add("seed", &seed, "seed of the random combinations");
  set.Add("server-binary", &server_binary, "serve with this program instead of this one");
  return set;
}

void Say(const std::string& line) {
  std::fprintf(stderr, "  %s\n", line.c_str());
  std::fflush(stderr);
}

void Prepare(const Flags& flags, SuiteOptions* suite) {
  suite->scale.seed = flags.seed;
  suite->device = flags.device;
  std::erase_if(suite->policies, [&](const PolicyUnderTest& policy) {
    return !absl::StartsWith(policy.name(), flags.policies);
  });
  suite->progress = [model = suite->model_name](const std::string& what) {
    Say(absl::StrCat(model, ": ", what));
  };
  suite->wanted = [only = flags.only, on_gpu = flags.device != "cpu",
                   inner = suite->wanted](const Perturbation& perturbation) {
    // A GPU's arithmetic has no threads of the host.
    if (on_gpu && perturbation.name == "threads") return false;
    return absl::StrContains(perturbation.name, only) && (!inner || inner(perturbation)) &&
           !client::Interrupted();
  };
}

absl::Status RunAll(const Flags& flags, std::vector<Cell>* cells) {
  const auto add = [&](absl::StatusOr<std::vector<Cell>> more) {
    if (!more.ok()) return more.status();
    for (Cell& cell : *more) cells->push_back(std::move(cell));
    return client::Interrupted() ? absl::CancelledError("interrupted") : absl::OkStatus();
  };
  if (flags.synthetic) {
    std::vector<SuiteOptions> suites = flags.short_form ? ShortSuites() : FullSuites();
    for (SuiteOptions& suite : suites) {
      if (!absl::StrContains(suite.model_name, flags.synthetic_models)) continue;
      Prepare(flags, &suite);
      if (absl::Status status = add(RunSuite(suite)); !status.ok()) return status;
    }
  }
  if (flags.model.empty()) return absl::OkStatus();
  SuiteOptions model = ModelSuite(flags.model);
  if (flags.short_form) model.scale = ShortScale();
  Prepare(flags, &model);
  if (absl::Status status = add(RunSuite(model)); !status.ok()) return status;
  if (!flags.servers || !flags.only.empty()) return absl::OkStatus();
  return add(RunServerTrials({.server_binary = flags.server_binary,
                              .model_path = flags.model,
                              .suite = model,
                              .progress = model.progress}));
}

absl::StatusOr<int> Run(const Flags& flags) {
  const auto start = std::chrono::steady_clock::now();
  Report report;
  report.machine = lab::DescribeMachine();
  report.version = VERBATIM_VERSION;
  report.form = flags.short_form ? "short" : "full";
  report.seed = flags.seed;
  if (absl::Status status = RunAll(flags, &report.cells); !status.ok()) return status;
  if (report.cells.empty()) {
    return absl::NotFoundError("no perturbation and policy has such a name as --only, --policies");
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s%s\n%lld comparisons, %lld mismatches, %.0f s\n", PromiseTable(report).c_str(),
              EffectTable(report).c_str(), static_cast<long long>(report.comparisons()),
              static_cast<long long>(report.mismatches()), report.seconds);
  std::fflush(stdout);
  if (!flags.output.empty()) {
    absl::Status written =
        client::WriteFile(flags.output, client::Dump(ReportJson(report), 1) + "\n");
    if (!written.ok()) return written;
    std::printf("wrote %s\n", flags.output.c_str());
  }
  if (report.passed()) return 0;
  std::fprintf(stderr, "\nFAILED: %s\n",
               report.mismatches() > 0 ? "a promise is broken" : "a perturbation did not happen");
  return 1;
}

}  // namespace

int RunConformance(int argc, char** argv) {
  Flags flags;
  flags::FlagSet set = flags.Set();
  return client::RunCommand({.name = "conformance",
                             .flags = &set,
                             .check =
                                 [&](const auto& positional) {
                                   absl::Status status = client::CheckNoArguments(positional);
                                   status.Update(kernels::ParseDevice(flags.device).status());
                                   return status;
                                 },
                             .run = [&] { return Run(flags); }},
                            argc, argv);
}

}  // namespace verbatim::conformance

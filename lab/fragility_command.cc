// Flags, files and exit status of `verbatim lab fragility`.
#include "lab/fragility_command.h"

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/command.h"
#include "client/files.h"
#include "client/report_json.h"
#include "flags/flag_set.h"
#include "lab/experiment_command.h"
#include "lab/fragility_experiment.h"
#include "lab/fragility_prompts.h"
#include "lab/fragility_report.h"
#include "lab/machine.h"

namespace verbatim::lab {
namespace {

struct Flags {
  FragilityOptions options;
  std::string output, report, answers_file;

  flags::FlagSet Set();
  absl::Status Resolve();
};

flags::FlagSet Flags::Set() {
  flags::FlagSet set("verbatim lab fragility --model FILE [flags]",
                     "Starts a server on this machine and asks it several hundred questions at "
                     "temperature 0, alone and among other traffic. Half of them calibrate how far "
                     "load moves the gap between the two best logits, and how probable it makes "
                     "another answer; the other half shows how well that predicts.");
  set.Add("model", &options.model, "checkpoint to serve; required");
  set.Add("output", &output,
          "calibration to write; default: the model's path with .fragility.json added, where "
          "`verbatim serve` finds it");
  set.Add("report", &report, "JSON file to write with the reliability table");
  set.Add("answers-file", &answers_file, "JSON lines to write with every answer's margins");
  set.Add("dtype", &options.dtype, "of the server, as are the next two: what it will serve with");
  set.Add("kv-cache-dtype", &options.kv_cache_dtype, "auto, float32 or bfloat16");
  set.Add("threads", &options.threads, "threads that compute; 0: every core");
  set.Add("answers", &options.answers, "predictions to check against a rerun, at least");
  set.Add("rounds", &options.rounds, "answers to each question under load");
  set.Add("max-tokens", &options.max_tokens, "most output tokens of an answer");
  set.Add("seed", &options.seed, "seed of questions, order and other traffic");
  set.Add("device", &options.device, "of the server, as for verbatim serve");
  set.Add("server-binary", &options.server_binary, "serve with this program instead of this one");
  return set;
}

absl::Status Flags::Resolve() {
  if (options.model.empty()) return client::BadFlag("model", "is required");
  if (absl::Status status = client::FirstError(
          {client::CheckRange("rounds", options.rounds, 2, 100),
           client::CheckRange("answers", options.answers, 1,
                              kMostFragilityPrompts / 2 * (options.rounds + 1)),
           client::CheckRange("max-tokens", options.max_tokens, 1, int64_t{1} << 20)});
      !status.ok()) {
    return status;
  }
  if (output.empty()) {
    output = options.model;
    while (output.size() > 1 && output.back() == '/') output.pop_back();
    output += ".fragility.json";
  }
  return absl::OkStatus();
}

absl::Status Write(const std::string& path, const std::string& content) {
  if (path.empty()) return absl::OkStatus();
  absl::Status status = client::WriteFile(path, content);
  if (status.ok()) std::printf("wrote %s\n", path.c_str());
  return status;
}

absl::StatusOr<int> Run(const Flags& flags) {
  const auto measured = MeasureFragility(flags.options, Say);
  if (!measured.ok()) return measured.status();
  // First what cannot be computed again.
  if (absl::Status status = Write(flags.answers_file, AnswerLines(*measured)); !status.ok()) {
    return status;
  }
  auto analysis = AnalyzeFragility(measured->answers, flags.options.seed);
  if (!analysis.ok()) return analysis.status();
  analysis->calibration.weights_sha256 = measured->model.weights_sha256();
  analysis->calibration.configuration = measured->configuration;
  std::printf("%s\n", FragilityTable(*measured, *analysis).c_str());
  if (absl::Status status = Write(flags.output, fragility::ToJson(analysis->calibration));
      !status.ok()) {
    return status;
  }
  const nlohmann::json report =
      FragilityJson(flags.options, *measured, *analysis, DescribeMachine());
  if (absl::Status status = Write(flags.report, client::Dump(report, 1) + "\n"); !status.ok()) {
    return status;
  }
  return 0;
}

}  // namespace

int RunFragility(int argc, char** argv) {
  Flags flags;
  return RunExperimentCommand("lab fragility", flags, Run, argc, argv);
}

}  // namespace verbatim::lab

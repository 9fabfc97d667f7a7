// Flags of `verbatim explain`, and the ways to two runs: given traces, receipts, or a prompt.
#include "replay/explain_command.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flags/flag_set.h"
#include "kernels/device/open_backend.h"
#include "model/chat_template.h"
#include "model/checkpoint.h"
#include "replay/explain_report.h"
#include "replay/explanation.h"
#include "replay/receipt_pair.h"
#include "replay/run_pair.h"
#include "report/files.h"
#include "trace/trace.h"

namespace verbatim::replay {
namespace {

struct Options {
  std::string model, page, dtype = "bfloat16", device = "cpu";
  bool json = false, raw = false;
  int32_t threads = 0, neighbours = 16, attempts = 8;
  int64_t max_tokens = 64, max_num_batched_tokens = 512;
  uint64_t seed = 1;
  double moe_capacity_factor = 0;
  std::string moe_overflow = "drop";

  flags::FlagSet Flags();
  absl::Status Check() const;
};

flags::FlagSet Options::Flags() {
  flags::FlagSet flags(
      "verbatim explain [--model PATH] [flags] PROMPT | A.json B.json",
      "Says why two runs of one prompt differ: the first token, and before it the first step, "
      "layer "
      "and operation whose bits differ, with the batch on either side. Two traces (verbatim "
      "generate --trace) are replayed and compared; of two receipts (verbatim generate --receipt) "
      "the requests and answers are compared, and replayed too where their traces are given "
      "beside them; a PROMPT is generated here, alone and among "
      "random neighbours until the tokens differ. PROMPT may be \"-\": it is then read from "
      "standard input.");
  flags.Add("model", &model,
            "the model that the answers came from; required but for receipts alone");
  flags.Add("page", &page, "HTML file to write, with a heat map of drift by layer and position");
  flags.Add("json", &json, "print the explanation as JSON");
  flags.Group("With a PROMPT");
  flags.Add("raw", &raw, "take PROMPT as plain text although the model has a chat template");
  flags.Add("dtype", &dtype, "activations: float32 or bfloat16");
  flags.Add("max-tokens", &max_tokens, "most output tokens");
  flags.Add("neighbours", &neighbours, "other requests beside the prompt");
  flags.Add("attempts", &attempts, "how often other neighbours are tried");
  flags.Add("max-num-batched-tokens", &max_num_batched_tokens, "tokens in one step");
  flags.Add("device", &device, kernels::kDeviceHelp);
  flags.Add("threads", &threads, "threads that compute; 0: every core this process may use");
  flags.Add("seed", &seed, "seed of the neighbours");
  flags.Add("moe-capacity-factor", &moe_capacity_factor,
            "mixtures of experts: an expert takes at most this times its even share of a step's "
            "tokens; 0: no limit");
  flags.Add("moe-overflow", &moe_overflow,
            "what becomes of a token whose expert is full: drop or next");
  return flags;
}

absl::Status Options::Check() const {
  const auto bad = [](const char* flag, const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", what));
  };
  if (dtype != "float32" && dtype != "bfloat16") return bad("dtype", "is not float32 or bfloat16");
  if (absl::Status named = kernels::ParseDevice(device).status(); !named.ok()) return named;
  if (max_tokens < 1) return bad("max-tokens", "must be at least 1");
  if (neighbours < 0 || neighbours > 1024) return bad("neighbours", "is not in [0, 1024]");
  if (attempts < 1) return bad("attempts", "must be at least 1");
  if (max_num_batched_tokens < neighbours + 1 || max_num_batched_tokens > 65536) {
    return bad("max-num-batched-tokens", "must hold one token of every sequence, at most 65536");
  }
  if (!(moe_capacity_factor >= 0 && moe_capacity_factor <= 1e6)) {
    return bad("moe-capacity-factor", "is not in [0, 1000000]");
  }
  if (moe_overflow != "drop" && moe_overflow != "next") {
    return bad("moe-overflow", "is not drop or next");
  }
  return absl::OkStatus();
}

int Failed(int code, const absl::Status& status) {
  std::fprintf(stderr, "verbatim explain: %s\n", std::string(status.message()).c_str());
  return code;
}

absl::StatusOr<std::vector<int32_t>> Tokenize(const std::string& prompt, bool raw,
                                              const model::Tokenizer& tokenizer) {
  const model::ChatTemplate chat = model::ChatTemplate::Recognise(tokenizer.chat_template());
  if (raw || chat.family() == model::ChatFamily::kUnknown) return tokenizer.Encode(prompt, {});
  auto text = chat.Render({{"user", prompt}}, tokenizer);
  if (!text.ok()) return text.status();
  model::EncodeOptions options;
  options.add_special_tokens = false;  // the template writes them itself
  return tokenizer.Encode(*text, options);
}

absl::StatusOr<Explanation> ExplainPrompt(const Options& options, std::string prompt,
                                          const model::Checkpoint& checkpoint,
                                          const std::string& weights,
                                          const model::Tokenizer& tokenizer) {
  if (prompt == "-") {
    prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  auto ids = Tokenize(prompt, options.raw, tokenizer);
  if (!ids.ok()) return ids.status();
  auto backend = kernels::OpenBackend({.device = options.device, .threads = options.threads});
  if (!backend.ok()) return backend.status();
  RunPairOptions pair_options;
  pair_options.prompt = *std::move(ids);
  pair_options.max_tokens = options.max_tokens;
  pair_options.neighbours = options.neighbours;
  pair_options.attempts = options.attempts;
  pair_options.seed = options.seed;
  if (options.moe_capacity_factor > 0 && checkpoint.config().moe.num_experts == 0) {
    return absl::InvalidArgumentError(
        "--moe-capacity-factor: the model is not a mixture of experts");
  }
  engine::EngineConfig& engine = pair_options.engine;
  engine.moe_capacity_factor = options.moe_capacity_factor;
  engine.moe_overflow = options.moe_overflow == "next" ? kernels::CapacityOverflow::kNext
                                                       : kernels::CapacityOverflow::kDrop;
  engine.scheduler.max_num_seqs = options.neighbours + 1;
  engine.scheduler.max_num_batched_tokens = options.max_num_batched_tokens;
  engine.scheduler.max_model_len =
      std::min<int64_t>(checkpoint.config().max_position,
                        std::max<int64_t>(1024, static_cast<int64_t>(pair_options.prompt.size()) +
                                                    options.max_tokens));
  if (options.dtype == "bfloat16") {
    engine.throughput_activations = kernels::ActivationType::kBF16;
  }
  auto pair = RunAloneAndLoaded(
      pair_options, *std::move(backend), checkpoint, tokenizer, weights,
      [](const std::string& line) { std::fprintf(stderr, "  %s\n", line.c_str()); });
  if (!pair.ok()) return pair.status();
  return Explain(checkpoint, weights, tokenizer, {"alone", pair->alone.get()},
                 {"under load", pair->loaded.get()});
}

// Two traces, two receipts, or two receipts and their traces, in that order among themselves.
absl::Status CheckKinds(const InputFiles& files) {
  const size_t receipts = files.receipts.size(), traces = files.traces.size();
  if (receipts + traces < 2 || (receipts != 0 && receipts != 2) || (traces != 0 && traces != 2)) {
    return absl::InvalidArgumentError(
        absl::StrCat("needs two traces, two receipts, or both; got ", traces, " and ", receipts));
  }
  for (size_t i = 0; receipts == 2 && i < traces; ++i) {
    absl::Status status = CheckTraceBelongs(files.traces[i], files.receipts[i]);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          files.trace_paths[i], ", ", files.receipt_paths[i], ": ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

void PrintComparison(const InputFiles& files, bool as_json) {
  const receipt::Comparison comparison = receipt::Compare(files.receipts[0], files.receipts[1]);
  std::fputs(as_json ? (ComparisonJson(files, comparison).dump(1, ' ', true) + "\n").c_str()
                     : ComparisonText(files, comparison).c_str(),
             stdout);
}

}  // namespace

int RunExplain(int argc, char** argv) {
  Options options;
  flags::FlagSet flags = options.Flags();
  const auto positional = flags.Parse(argc, argv);
  if (!positional.ok()) return Failed(2, positional.status());
  if (flags.help_requested()) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (absl::Status status = options.Check(); !status.ok()) return Failed(2, status);
  if (positional->empty() || positional->size() == 3 || positional->size() > 4) {
    return Failed(2, absl::InvalidArgumentError(
                         "needs one PROMPT, two traces, two receipts, or both; quote a prompt with "
                         "spaces"));
  }
  InputFiles files;
  if (positional->size() > 1) {
    auto read = ReadInputFiles(*positional);
    if (!read.ok()) return Failed(1, read.status());
    files = *std::move(read);
    if (absl::Status status = CheckKinds(files); !status.ok()) return Failed(2, status);
    if (!files.receipts.empty()) PrintComparison(files, options.json);
    if (files.traces.empty()) return 0;
  }
  if (options.model.empty()) {
    return Failed(2, absl::InvalidArgumentError("--model: is required but for receipts alone"));
  }
  const auto checkpoint = model::Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return Failed(1, checkpoint.status());
  const auto tokenizer = (*checkpoint)->LoadTokenizer();
  if (!tokenizer.ok()) return Failed(1, tokenizer.status());
  const std::string weights = (*checkpoint)->WeightsFingerprint();
  const auto explanation =
      files.traces.size() == 2
          ? Explain(**checkpoint, weights, **tokenizer, {files.trace_paths[0], &files.traces[0]},
                    {files.trace_paths[1], &files.traces[1]})
          : ExplainPrompt(options, positional->front(), **checkpoint, weights, **tokenizer);
  if (!explanation.ok()) return Failed(1, explanation.status());
  const nlohmann::json data = ExplanationJson(*explanation, **tokenizer);
  std::fputs(options.json ? (data.dump(1, ' ', true) + "\n").c_str()
                          : ExplanationText(*explanation).c_str(),
             stdout);
  std::fflush(stdout);
  if (options.page.empty()) return 0;
  if (absl::Status status = report::WriteFile(options.page, ExplanationPage(data)); !status.ok()) {
    return Failed(1, status);
  }
  std::fprintf(stderr, "wrote %s\n", options.page.c_str());
  return 0;
}

}  // namespace verbatim::replay

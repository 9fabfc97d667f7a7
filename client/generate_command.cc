// Flags and output of `verbatim generate`.
#include "client/generate_command.h"

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "client/command.h"
#include "client/files.h"
#include "client/interrupt.h"
#include "client/prompt_flags.h"
#include "client/sampling_flags.h"
#include "flags/flag_set.h"
#include "receipt/receipt_message.h"

namespace verbatim::client {
namespace {

// Output tokens without --max-tokens.
constexpr int64_t kMaxTokens = 256;
constexpr int64_t kMostSamples = int64_t{1} << 31;

struct Options {
  ConnectionFlags connection;
  PromptFlags prompt;
  bool show_stats = false, disable_prefix_cache = false, fragility = false;
  bool trace_layers = false;
  std::string cache_salt, request_id, receipt, trace;
  std::optional<int64_t> n;
  v1::Determinism determinism = v1::DETERMINISM_UNSPECIFIED;
  SamplingFlags sampling;

  flags::FlagSet Flags();
  absl::Status Check(const std::vector<std::string>& positional);
  absl::StatusOr<int> Run() const;
};

flags::FlagSet Options::Flags() {
  flags::FlagSet flags("verbatim generate [flags] PROMPT",
                       "Sends one prompt to a running server and streams the answer. PROMPT may be "
                       "\"-\": it is then read from standard input.");
  connection.Register(&flags);
  flags.Group("Request");
  AddDeterminismFlag(&flags, &determinism);
  prompt.Register(&flags);
  flags.Add("n", &n, "number of samples; several are printed one after another at the end");
  flags.Add("cache-salt", &cache_salt, "prefix-cache pages are shared only between equal salts");
  flags.Add("disable-prefix-cache", &disable_prefix_cache, "compute every position of the prompt");
  flags.Add("request-id", &request_id, "name of the request in the server's log");
  flags.Add("receipt", &receipt,
            "file for the answer's receipt, with --n one for each sample on a line of its own; "
            "`verbatim verify` checks it");
  flags.Add("trace", &trace,
            "file that gets the record of what decided the answer's bits, for `verbatim replay` "
            "and `verbatim explain`; the server must allow it (--allow-traces)");
  flags.Add("trace-layers", &trace_layers,
            "with --trace: also record a fingerprint of every output token's row after each layer");
  flags.Add("show-stats", &show_stats, "print hash, numerics id and timing to standard error");
  flags.Add("fragility", &fragility,
            "print how many tokens load could move, and the chance that a rerun differs, to "
            "standard error");
  sampling.Register(&flags);
  return flags;
}

absl::Status Options::Check(const std::vector<std::string>& positional) {
  absl::Status status = FirstError({connection.Check(), sampling.Check(),
                                    n ? CheckRange("n", *n, 1, kMostSamples) : absl::OkStatus()});
  if (status.ok() && !trace.empty() && n.value_or(1) != 1) {
    status = BadFlag("trace", "describes one sample; leave out --n");
  }
  if (status.ok() && trace_layers && trace.empty()) {
    status = BadFlag("trace-layers", "needs --trace");
  }
  return status.ok() ? prompt.Take(positional) : status;
}

// The trace of the only sample, as it came.
absl::Status WriteTrace(const CallRecord& record, const std::string& path) {
  if (record.samples.empty() || !record.samples[0].finished.has_value() ||
      !record.samples[0].finished->has_trace()) {
    return absl::UnavailableError("--trace: the answer came without a trace");
  }
  const v1::DecisionTrace& trace = record.samples[0].finished->trace();
  if (!trace.not_replayable().empty()) {
    std::fprintf(stderr, "verbatim generate: the trace cannot be replayed: %s\n",
                 trace.not_replayable().c_str());
  }
  return WriteFile(path, trace.json() + "\n");
}

void PrintStats(const CallRecord& record) {
  std::fprintf(stderr, "determinism  %s\n", DeterminismName(record.accepted.determinism()).c_str());
  if (!record.accepted.numerics_id().empty()) {
    std::fprintf(stderr, "numerics     %s\n", record.accepted.numerics_id().c_str());
  }
  std::fprintf(stderr, "seed         %llu\n",
               static_cast<unsigned long long>(record.accepted.seed()));
  for (size_t i = 0; i < record.samples.size(); ++i) {
    const auto& finished = record.samples[i].finished;
    if (!finished.has_value()) continue;
    std::fprintf(stderr, "sample %-5zu logits %s, %lld tokens, ended by %s, smallest margin %g\n",
                 i, finished->logits_sha256().c_str(),
                 static_cast<long long>(finished->output_tokens()),
                 finished->reason() == v1::FINISH_REASON_LENGTH ? "length" : "stop",
                 static_cast<double>(finished->min_top_margin()));
  }
  if (!record.usage.has_value()) return;
  std::fprintf(stderr, "tokens       %lld prompt (%lld from the prefix cache), %lld output\n",
               static_cast<long long>(record.usage->prompt_tokens()),
               static_cast<long long>(record.usage->cached_prompt_tokens()),
               static_cast<long long>(record.usage->output_tokens()));
  if (record.usage->response_cache_hit()) {
    std::fprintf(stderr, "cache        the whole answer came from the response cache\n");
  }
  const double seconds = record.end_to_end_latency();
  std::fprintf(stderr, "time         %.0f ms to first token, %.0f ms in all, %.1f tokens/s\n",
               1e3 * record.time_to_first_token().value_or(0), 1e3 * seconds,
               static_cast<double>(record.output_tokens()) / seconds);
}

// One receipt a line, in the order of the samples.
absl::Status WriteReceipts(const std::string& path, const CallRecord& record) {
  std::string text;
  for (size_t i = 0; i < record.samples.size(); ++i) {
    const auto& finished = record.samples[i].finished;
    if (!finished.has_value() || !finished->has_receipt()) {
      return absl::InternalError(absl::StrCat("--receipt: the server sent none for sample ", i));
    }
    const auto receipt = receipt::FromMessage(finished->receipt());
    if (!receipt.ok()) return receipt.status();
    absl::StrAppend(&text, receipt::ToCanonicalJson(*receipt), "\n");
  }
  std::ofstream file(path, std::ios::binary);  // may be /dev/stdout
  file << text;
  if (file.flush()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("--receipt: cannot write ", path));
}

void PrintFragility(const CallRecord& record) {
  for (size_t i = 0; i < record.samples.size(); ++i) {
    const SampleRecord& sample = record.samples[i];
    if (!sample.finished.has_value()) continue;
    std::fprintf(stderr, "sample %-5zu ", i);
    if (!sample.finished->has_fragility()) {
      std::fprintf(stderr,
                   "smallest margin %g; the server has no calibration, which verbatim lab "
                   "fragility makes\n",
                   static_cast<double>(sample.finished->min_top_margin()));
      continue;
    }
    const v1::Fragility& fragility = sample.finished->fragility();
    std::fprintf(stderr, "%lld of %lld tokens fragile",
                 static_cast<long long>(fragility.fragile_tokens()),
                 static_cast<long long>(sample.finished->output_tokens()));
    if (fragility.has_probability()) {
      std::fprintf(stderr, ", a rerun under load differs with probability %.3g (%.3g to %.3g)",
                   fragility.probability(), fragility.probability_low(),
                   fragility.probability_high());
    }
    if (!fragility.note().empty()) std::fprintf(stderr, "; %s", fragility.note().c_str());
    std::fprintf(stderr, "\n             by %s\n", fragility.calibration().c_str());
  }
}

absl::StatusOr<int> Options::Run() const {
  auto client = connection.Connect();
  if (!client.ok()) return client.status();
  v1::GenerateRequest request;
  if (absl::Status status = prompt.Fill(client->get(), &request); !status.ok()) return status;
  *request.mutable_sampling() = sampling.ToProto();
  if (n.has_value()) request.mutable_sampling()->set_n(*n);
  // The server's own default is what the context leaves; a terminal wants an answer it can read.
  if (!request.sampling().has_max_tokens()) request.mutable_sampling()->set_max_tokens(kMaxTokens);
  request.set_determinism(determinism);
  request.set_cache_salt(cache_salt);
  request.set_request_id(request_id);
  request.set_disable_prefix_cache(disable_prefix_cache);
  request.set_return_receipt(!receipt.empty());
  if (!trace.empty()) {
    request.set_trace(trace_layers ? v1::TRACE_LEVEL_LAYERS : v1::TRACE_LEVEL_DECISIONS);
  }
  request.set_return_fragility(fragility);

  const bool stream = n.value_or(1) == 1;
  const CallRecord record = (*client)->Generate(
      request,
      [stream](const v1::GenerateResponse& response) {
        if (!stream || !response.has_delta()) return;
        const std::string& text = response.delta().text();
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      },
      Interrupted);
  if (stream) {
    std::fputs("\n", stdout);
  } else {
    for (size_t i = 0; i < record.samples.size(); ++i) {
      std::printf("[%zu] %s\n", i, record.samples[i].text.c_str());
    }
  }
  std::fflush(stdout);
  if (show_stats) PrintStats(record);
  if (fragility) PrintFragility(record);
  if (!record.status.ok()) return record.status;
  if (!receipt.empty()) {
    if (absl::Status status = WriteReceipts(receipt, record); !status.ok()) return status;
  }
  if (!trace.empty()) {
    if (absl::Status status = WriteTrace(record, trace); !status.ok()) return status;
  }
  return 0;
}

}  // namespace

int RunGenerate(int argc, char** argv) {
  Options options;
  flags::FlagSet flags = options.Flags();
  return RunCommand({.name = "generate",
                     .flags = &flags,
                     .check = [&](const auto& positional) { return options.Check(positional); },
                     .run = [&] { return options.Run(); }},
                    argc, argv);
}

}  // namespace verbatim::client

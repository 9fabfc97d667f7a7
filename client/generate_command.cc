// Flags and output of `verbatim generate`.
#include "client/generate_command.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "client/interrupt.h"
#include "client/sampling_flags.h"
#include "flags/flag_set.h"

namespace verbatim::client {
namespace {

// Output tokens without --max-tokens.
constexpr int64_t kMaxTokens = 256;

struct Options {
  std::string target = "127.0.0.1:50051";
  double connect_timeout_s = 10;
  bool chat = false, raw = false, show_stats = false, disable_prefix_cache = false;
  std::string system, cache_salt, request_id;
  std::optional<int64_t> n;
  v1::Determinism determinism = v1::DETERMINISM_UNSPECIFIED;
  SamplingFlags sampling;

  flags::FlagSet Flags();
};

flags::FlagSet Options::Flags() {
  flags::FlagSet flags("verbatim generate [flags] PROMPT",
                       "Sends one prompt to a running server and streams the answer. PROMPT may be "
                       "\"-\": it is then read from standard input.");
  flags.Group("Server");
  flags.Add("target", &target, "HOST:PORT of the server");
  flags.Add("connect-timeout-s", &connect_timeout_s, "seconds to wait for the server");
  flags.Group("Request");
  AddDeterminismFlag(&flags, &determinism);
  flags.Add("chat", &chat, "send PROMPT as a chat message; default where the model has a template");
  flags.Add("raw", &raw, "send PROMPT as plain text");
  flags.Add("system", &system, "system message of the chat");
  flags.Add("n", &n, "number of samples; several are printed one after another at the end");
  flags.Add("cache-salt", &cache_salt, "prefix-cache pages are shared only between equal salts");
  flags.Add("disable-prefix-cache", &disable_prefix_cache, "compute every position of the prompt");
  flags.Add("request-id", &request_id, "name of the request in the server's log");
  flags.Add("show-stats", &show_stats, "print hash, numerics id and timing to standard error");
  sampling.Register(&flags);
  return flags;
}

int Usage(const std::string& message) {
  std::fprintf(stderr, "verbatim generate: %s\n", message.c_str());
  return 2;
}

int Failed(const absl::Status& status) {
  std::fprintf(stderr, "verbatim generate: %s\n", Describe(status).c_str());
  return 1;
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
  const double seconds = record.end_to_end_latency();
  std::fprintf(stderr, "time         %.0f ms to first token, %.0f ms in all, %.1f tokens/s\n",
               1e3 * record.time_to_first_token().value_or(0), 1e3 * seconds,
               static_cast<double>(record.output_tokens()) / seconds);
}

}  // namespace

int RunGenerate(int argc, char** argv) {
  Options options;
  flags::FlagSet flags = options.Flags();
  const auto positional = flags.Parse(argc, argv);
  if (!positional.ok()) return Usage(std::string(positional.status().message()));
  if (flags.help_requested()) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (positional->size() != 1) {
    return Usage("needs exactly one PROMPT; quote it if it has spaces (see --help)");
  }
  if (options.chat && options.raw) return Usage("--chat and --raw exclude each other");
  if (options.raw && !options.system.empty()) return Usage("--system: has no place in --raw text");
  if (!(options.connect_timeout_s >= 0)) return Usage("--connect-timeout-s: is negative");
  std::string prompt = positional->front();
  if (prompt == "-") {
    prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }

  CatchInterrupts();
  auto client = Client::Connect(options.target, absl::Seconds(options.connect_timeout_s), [] {
    return Interrupted() ? absl::CancelledError("interrupted") : absl::OkStatus();
  });
  if (!client.ok()) return Failed(client.status());
  bool chat = options.chat || !options.system.empty();
  if (!chat && !options.raw) {
    const auto model = (*client)->GetModelInfo();
    if (!model.ok()) return Failed(model.status());
    chat = model->chat_family() != "unknown";
  }

  v1::GenerateRequest request;
  SetPrompt(prompt, options.system, chat, &request);
  *request.mutable_sampling() = options.sampling.ToProto();
  if (options.n.has_value()) request.mutable_sampling()->set_n(*options.n);
  // The server's own default is what the context leaves; a terminal wants an answer it can read.
  if (!request.sampling().has_max_tokens()) request.mutable_sampling()->set_max_tokens(kMaxTokens);
  request.set_determinism(options.determinism);
  request.set_cache_salt(options.cache_salt);
  request.set_request_id(options.request_id);
  request.set_disable_prefix_cache(options.disable_prefix_cache);

  const bool stream = options.n.value_or(1) == 1;
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
  if (options.show_stats) PrintStats(record);
  return record.status.ok() ? 0 : Failed(record.status);
}

}  // namespace verbatim::client

// Start-up and shutdown of the server process.
#include "server/serve_command.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "engine/version.h"
#include "google/protobuf/stubs/logging.h"
#include "kernels/device/open_backend.h"
#include "model/chat_template.h"
#include "model/checkpoint.h"
#include "server/cpu_time.h"
#include "server/fragility_calibration.h"
#include "server/generation_service.h"
#include "server/grpc_server.h"
#include "server/rank_process.h"
#include "server/server_config.h"
#include "server/unary_calls.h"
#include "server/write_thread.h"

namespace verbatim::server {
namespace {

// How long clients may take to read the end of their answers once the engine is done.
constexpr absl::Duration kDeliveryGrace = absl::Seconds(2);
// How long requests may go on once a launcher has begun to end its ranks: long enough before they
// are killed that every request gets a status.
constexpr double kHurriedDrainSeconds = 0.3;
// How long after that a step may still take before its requests are ended without it: it may be
// waiting for a rank that the launcher already knows to be gone.
constexpr absl::Duration kHurriedStepLimit = absl::Milliseconds(300);

std::string FamilyName(model::Family family) {
  switch (family) {
    case model::Family::kLlama:
      return "llama";
    case model::Family::kMistral:
      return "mistral";
    case model::Family::kQwen2:
      return "qwen2";
    case model::Family::kQwen3:
      return "qwen3";
    case model::Family::kMixtral:
      return "mixtral";
    case model::Family::kQwen2Moe:
      return "qwen2_moe";
    case model::Family::kQwen3Moe:
      return "qwen3_moe";
    case model::Family::kOlmoe:
      return "olmoe";
    case model::Family::kGraniteMoe:
      return "granitemoe";
  }
  return "unknown";
}

std::string ChatFamilyName(model::ChatFamily family) {
  switch (family) {
    case model::ChatFamily::kUnknown:
      return "unknown";
    case model::ChatFamily::kChatMl:
      return "chatml";
    case model::ChatFamily::kLlama3:
      return "llama3";
    case model::ChatFamily::kMistral:
      return "mistral";
    case model::ChatFamily::kGemma:
      return "gemma";
    case model::ChatFamily::kZephyr:
      return "zephyr";
  }
  return "unknown";
}

std::string HumanBytes(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib >= 1024 ? absl::StrFormat("%.2f GiB", mib / 1024) : absl::StrFormat("%.0f MiB", mib);
}

int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// No prompt of max_model_len tokens is longer than this, even where the tokenizer normalises text
// to a shorter form.
int64_t LongestPromptBytes(const model::Tokenizer& tokenizer, int64_t max_model_len) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.TokenBytes(id).size());
  }
  return std::min<int64_t>(4 * static_cast<int64_t>(longest) * max_model_len, 8 << 20);
}

// Everything that serves, in the order of its making; destroyed in reverse.
struct Serving {
  Ranks ranks;
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Tokenizer> tokenizer;
  model::ChatTemplate chat_template;
  std::string backend_description;
  std::atomic<bool> failed{false};  // the engine's backend, for good
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<FrontEndCpuTime> cpu_time;
  std::unique_ptr<ReceiptIssuer> receipts;
  std::unique_ptr<ResponseCache> response_cache;
  ServiceContext context;
  std::unique_ptr<TextWorkers> text_workers;
  std::unique_ptr<WriteThread> write_thread;
  std::unique_ptr<GenerationService> service;
  std::unique_ptr<GrpcServer> grpc;
};

absl::Status LoadFragility(ServerConfig* config, const std::string& weights_sha256,
                           Serving* serving) {
  auto found =
      FindFragilityCalibration(config->fragility_calibration, config->model, weights_sha256,
                               fragility::ConfigurationName(serving->backend_description,
                                                            config->dtype, config->kv_cache_dtype));
  if (!found.ok()) return found.status();
  if (!found->ignored.empty()) std::fprintf(stderr, "%s\n", found->ignored.c_str());
  config->fragility_calibration = found->path;
  serving->context.fragility_calibration = std::move(found->calibration);
  return absl::OkStatus();
}

absl::Status LoadModel(ServerConfig* config, Serving* serving, std::string* weights_sha256) {
  // Before the model is read: a device that cannot be used takes no time to refuse.
  auto backend = OpenRankBackend(*config, &serving->ranks);
  if (!backend.ok()) return backend.status();
  const kernels::Backend* const opened = backend->get();
  auto checkpoint = model::Checkpoint::Open(config->model);
  if (!checkpoint.ok()) return checkpoint.status();
  serving->checkpoint = *std::move(checkpoint);
  // Reads every weight once; meanwhile they are packed.
  std::future<std::string> fingerprint =
      std::async(std::launch::async,
                 [model = serving->checkpoint.get()] { return model->WeightsFingerprint(); });
  auto tokenizer = serving->checkpoint->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  serving->tokenizer = *std::move(tokenizer);
  serving->chat_template = model::ChatTemplate::Recognise(serving->tokenizer->chat_template());
  if (absl::Status status = config->Resolve(serving->checkpoint->config()); !status.ok()) {
    return status;
  }
  engine::EngineConfig engine_config = config->ToEngineConfig();
  engine_config.communicator = serving->ranks.communicator();
  engine_config.on_failure = [serving, waiting = pthread_self()](const absl::Status&) {
    serving->failed = true;
    pthread_kill(waiting, SIGUSR1);
  };
  auto engine = engine::Engine::Create(engine_config, *std::move(backend), *serving->checkpoint,
                                       *serving->tokenizer);
  if (!engine.ok()) return engine.status();
  serving->engine = *std::move(engine);
  // Loading may have ended the use of a kernel.
  serving->backend_description = opened->Describe();
  const engine::PolicySupport support = serving->engine->SupportOf(config->DefaultPolicy());
  if (!support.honoured) {
    return absl::FailedPreconditionError(
        absl::StrCat("--default-determinism: ", config->default_determinism,
                     " cannot be honoured: ", support.refusal));
  }
  *weights_sha256 = fingerprint.get();
  return LoadFragility(config, *weights_sha256, serving);
}

v1::GetModelInfoResponse DescribeModel(const ServerConfig& config, const Serving& serving,
                                       const std::string& weights_sha256) {
  const model::ModelConfig& model = serving.checkpoint->config();
  v1::GetModelInfoResponse info;
  info.set_served_model_name(config.served_model_name);
  info.set_path(serving.checkpoint->path());
  info.set_family(FamilyName(model.family));
  info.set_vocab_size(model.vocab_size);
  info.set_max_model_len(config.max_model_len);
  info.set_num_layers(model.num_layers);
  info.set_num_experts(model.moe.num_experts);
  info.set_experts_per_token(model.moe.experts_per_token);
  info.set_hidden_size(model.hidden_size);
  info.set_num_heads(model.num_heads);
  info.set_num_kv_heads(model.num_kv_heads);
  info.set_head_dim(model.head_dim);
  info.set_weight_bytes_stored(serving.checkpoint->weight_bytes());
  info.set_weight_bytes_in_memory(serving.engine->stats().weight_bytes_in_memory);
  info.set_weights_sha256(weights_sha256);
  info.set_tokenizer_sha256(std::string(serving.tokenizer->fingerprint()));
  for (int32_t id : serving.tokenizer->eos_ids()) info.add_eos_token_ids(id);
  info.set_chat_family(ChatFamilyName(serving.chat_template.family()));
  return info;
}

void FillContext(const ServerConfig& config, const flags::FlagSet& flags, absl::Time start,
                 const std::string& weights_sha256, Serving* serving) {
  ServiceContext& context = serving->context;
  context.engine = serving->engine.get();
  context.tokenizer = serving->tokenizer.get();
  context.chat_template = &serving->chat_template;
  context.text_workers = serving->text_workers.get();
  context.write_thread = serving->write_thread.get();
  context.limits.served_model_name = config.served_model_name;
  context.limits.vocab_size = serving->checkpoint->config().vocab_size;
  context.limits.max_model_len = config.max_model_len;
  context.limits.max_logprobs = config.max_logprobs;
  context.limits.max_n = serving->engine->config().max_n;
  context.limits.max_prompt_text_bytes =
      LongestPromptBytes(*serving->tokenizer, config.max_model_len);
  context.receipts = config.receipts ? serving->receipts.get() : nullptr;
  context.response_cache = serving->response_cache.get();
  context.limits.receipts = config.receipts;
  context.limits.default_policy = config.DefaultPolicy();
  context.limits.default_seed = config.seed;
  context.model_info = DescribeModel(config, *serving, weights_sha256);
  context.start_time = start;
  context.front_end_cpu_seconds = [cpu = serving->cpu_time.get()] { return cpu->Seconds(); };
  context.request_id_prefix = absl::StrFormat("req-%08x-", std::random_device()());

  v1::GetServerInfoResponse& info = context.server_info;
  info.set_version(engine::kVersion);
  info.set_backend(serving->backend_description);
  FillPolicies(*serving->engine, &info);
  info.set_default_determinism(static_cast<v1::Determinism>(config.DefaultPolicy()));
  for (const auto& [name, value] : flags.Values()) (*info.mutable_configuration())[name] = value;
  info.set_load_seconds(absl::ToDoubleSeconds(absl::Now() - start));
}

absl::Status WritePortFile(const std::string& path, int32_t port) {
  // Whoever waits for the file must not read it half-written.
  const std::string temporary = absl::StrCat(path, ".tmp");
  {
    std::ofstream file(temporary);
    file << port << "\n";
    if (!file.flush()) {
      return absl::UnavailableError(absl::StrCat("--port-file: cannot write ", temporary));
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("--port-file: cannot write ", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<receipt::SigningKey>> LoadSigningKey(const ServerConfig& config) {
  if (config.receipt_signing_key.empty()) return std::nullopt;
  auto key = receipt::SigningKey::Load(config.receipt_signing_key);
  if (key.ok()) return *std::move(key);
  return absl::Status(key.status().code(),
                      absl::StrCat("--receipt-signing-key: ", key.status().message()));
}

absl::Status Start(ServerConfig* config, const flags::FlagSet& flags, absl::Time start,
                   Serving* serving) {
  auto signing_key = LoadSigningKey(*config);  // first, because it takes no time
  if (!signing_key.ok()) return signing_key.status();
  std::string weights_sha256;
  if (absl::Status status = LoadModel(config, serving, &weights_sha256); !status.ok()) {
    return status;
  }
  serving->cpu_time = std::make_unique<FrontEndCpuTime>();
  serving->text_workers = std::make_unique<TextWorkers>(/*threads=*/1, /*max_queued=*/256);
  serving->write_thread = std::make_unique<WriteThread>();
  serving->receipts = std::make_unique<ReceiptIssuer>(
      ReceiptIdentity{engine::kVersion, config->served_model_name, weights_sha256,
                      std::string(serving->tokenizer->fingerprint())},
      *std::move(signing_key));
  if (config->response_cache_mib > 0) {
    serving->response_cache = std::make_unique<ResponseCache>(config->response_cache_mib << 20);
  }
  FillContext(*config, flags, start, weights_sha256, serving);
  serving->service = std::make_unique<GenerationService>(&serving->context);
  auto grpc =
      GrpcServer::Start({.host = config->host, .port = config->port}, serving->service.get());
  if (!grpc.ok()) return grpc.status();
  serving->grpc = *std::move(grpc);
  if (config->port_file.empty()) return absl::OkStatus();
  return WritePortFile(config->port_file, serving->grpc->port());
}

void PrintReady(const ServerConfig& config, const Serving& serving, absl::Duration took) {
  const engine::EngineStats stats = serving.engine->stats();
  std::fprintf(stderr,
               "ready on %s in %.2f s: %s, %s; %lld KV pages of %lld tokens (%s), weights %s, "
               "resident %s\n",
               serving.grpc->address().c_str(), absl::ToDoubleSeconds(took),
               config.served_model_name.c_str(), serving.backend_description.c_str(),
               static_cast<long long>(stats.scheduler.total_pages),
               static_cast<long long>(config.block_size), HumanBytes(stats.kv_cache_bytes).c_str(),
               HumanBytes(stats.weight_bytes_in_memory).c_str(),
               HumanBytes(ResidentBytes()).c_str());
  std::fflush(stderr);
}

// SIGTERM, SIGINT and SIGUSR2, which launchers of ranks pass on, and SIGUSR1, by which the draining
// thread reports to the waiting one. Blocked in every thread, so that only sigwaitinfo() takes
// them.
sigset_t BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

// `hurried`: set where a launcher ends its ranks. Open MPI's kills them a second after SIGTERM.
int WaitFor(const sigset_t& set, bool* hurried = nullptr) {
  siginfo_t info;
  int signal;
  do {
    signal = sigwaitinfo(&set, &info);
  } while (signal < 0);
  if (hurried != nullptr && signal == SIGTERM && info.si_pid == getppid()) *hurried = true;
  return signal;
}

// Nothing is left to wait for but that clients read how their requests ended.
int EndAfterFailure(Serving* serving) {
  std::fprintf(stderr, "verbatim serve: %s\n",
               std::string(serving->engine->failure().message()).c_str());
  serving->grpc->SetNotServing();
  serving->grpc->Shutdown(absl::Now() + kDeliveryGrace);
  std::fprintf(stderr, "stopped\n");
  return 1;
}

int ServeUntilSignal(const ServerConfig& config, const sigset_t& signals, Serving* serving) {
  int signal;
  bool hurried = false;
  do {
    signal = WaitFor(signals, &hurried);
    if (serving->failed) return EndAfterFailure(serving);
  } while (signal == SIGUSR1);
  hurried = hurried && serving->ranks.host != nullptr;
  const double drain_s =
      hurried ? std::min(config.drain_timeout_s, kHurriedDrainSeconds) : config.drain_timeout_s;
  std::fprintf(stderr, "draining for up to %g s; a second signal ends at once\n", drain_s);
  serving->context.draining = true;
  serving->grpc->SetNotServing();
  const absl::Time deadline = absl::Now() + absl::Seconds(drain_s);
  const pthread_t waiting = pthread_self();
  std::thread draining([&] {
    serving->engine->Drain(deadline);
    // Every answer is complete; what is left is to hand it to clients that read it.
    serving->grpc->Shutdown(absl::Now() + kDeliveryGrace);
    pthread_kill(waiting, SIGUSR1);
  });
  if (hurried) {
    const timespec limit = absl::ToTimespec(absl::Seconds(drain_s) + kHurriedStepLimit);
    do {
      signal = sigtimedwait(&signals, nullptr, &limit);
    } while (signal < 0 && errno == EINTR);
    if (signal < 0) {
      serving->ranks.host->Abort(absl::UnavailableError("its launcher ended the ranks"));
    }
  }
  if (!hurried || signal < 0) signal = WaitFor(signals);
  // A device that fails now ends every request, and with them the draining.
  if (signal != SIGUSR1) serving->engine->Drain(absl::InfinitePast());
  draining.join();
  std::fprintf(stderr, "stopped\n");
  if (serving->failed) return 1;
  return signal == SIGUSR1 ? 0 : 128 + signal;
}

}  // namespace

int RunServe(int argc, char** argv) {
  const absl::Time start = absl::Now();
  // Before anything can fail: a launcher that sees one rank end sends SIGTERM to the others, which
  // must not keep rank 0 from saying why.
  const sigset_t signals = BlockSignals();
  ServerConfig config;
  flags::FlagSet flags = config.Flags();
  absl::StatusOr<std::vector<std::string>> positional = flags.Parse(argc, argv);
  absl::Status status = positional.status();
  if (status.ok() && flags.help_requested()) {
    if (IsFirstRank()) std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (status.ok() && !positional->empty()) {
    status = absl::InvalidArgumentError(
        absl::StrCat("'", positional->front(), "': unexpected argument; see --help"));
  }
  if (status.ok()) status = config.Validate();
  if (!status.ok()) {
    if (IsFirstRank()) {
      std::fprintf(stderr, "verbatim serve: %s\n", std::string(status.message()).c_str());
    }
    return 2;
  }
  // Protobuf would print a line for every request with invalid UTF-8; the client gets the error.
  google::protobuf::SetLogHandler(nullptr);
  absl::StatusOr<Ranks> ranks = JoinRanks(config);
  if (ranks.ok() && !IsFirstRank()) return RunFollowerRank(config, *std::move(ranks));
  Serving serving;
  status = ranks.status();
  if (status.ok()) {
    serving.ranks = *std::move(ranks);
    status = Start(&config, flags, start, &serving);
  }
  if (!status.ok()) {
    if (serving.ranks.host != nullptr) serving.ranks.host->Abort(status);
    if (!IsFirstRank()) return 1;
    std::fprintf(stderr, "verbatim serve: %s\n", std::string(status.message()).c_str());
    // A flag that the model contradicts is still a wrong flag.
    return status.message().substr(0, 2) == "--" && absl::IsInvalidArgument(status) ? 2 : 1;
  }
  PrintReady(config, serving, absl::Now() - start);
  return ServeUntilSignal(config, signals, &serving);
}

}  // namespace verbatim::server

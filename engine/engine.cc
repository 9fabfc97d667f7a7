// Start of the engine, and what its callers' threads do: validate, submit, cancel, drain.
#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/engine_impl.h"
#include "engine/model_setup.h"

namespace verbatim::engine {
namespace {

using kernels::Policy;

// A cache salt that no request can bring: the pages of a verification stay its own, so that nobody
// learns from a prefix-cache hit what others had verified.
std::string PrivateSalt() {
  std::random_device entropy;
  std::string salt = "verification";
  for (int i = 0; i < 4; ++i) absl::StrAppend(&salt, " ", absl::Hex(entropy()));
  return salt;
}

}  // namespace

absl::Status EngineImpl::LoadModel(const model::Checkpoint& checkpoint, bool choose_pages) {
  absl::StatusOr<std::unique_ptr<model::Transformer>> transformer =
      LoadTransformer(config_, *backend_, checkpoint);
  if (!transformer.ok()) return transformer.status();
  transformer_ = *std::move(transformer);
  if (choose_pages) {
    absl::Status chosen = ChoosePages(checkpoint.config(), *backend_, &config_);
    if (!chosen.ok()) return chosen;
  }
  return AgreeOnSetup(*backend_, checkpoint, &config_);
}

absl::Status EngineImpl::TryDecodeSteps() {
  for (const auto& [policy, support] : support_) {
    if (!support.honoured) continue;
    kernels::NumericMode mode = {.policy = policy};
    if (policy == Policy::kThroughput) mode.activations = config_.throughput_activations;
    if (absl::Status tried = transformer_->TryDecode(mode, *cache_); !tried.ok()) {
      return absl::Status(tried.code(),
                          absl::StrCat("first decode step in ", std::string(NameOf(policy)), ": ",
                                       std::string(tried.message())));
    }
  }
  return absl::OkStatus();
}

absl::Status EngineImpl::WatchRanks() {
  if (config_.communicator == nullptr) return absl::OkStatus();
  if (config_.communicator->size() > 1) {
    const auto ready = config_.communicator->TakeReports();
    if (!ready.ok()) return ready.status();
  }
  config_.communicator->OnFailure([this](const absl::Status& status) {
    {
      std::lock_guard lock(mu_);
      rank_failure_ = status;
    }
    wake_.notify_one();
  });
  return absl::OkStatus();
}

EngineImpl::~EngineImpl() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (config_.communicator != nullptr) {
    config_.communicator->OnFailure(nullptr);
    config_.communicator->Close();
  }
}

absl::Status EngineImpl::Start(const model::Checkpoint& checkpoint) {
  const model::ModelConfig& model = checkpoint.config();
  scheduler::SchedulerConfig& sched = config_.scheduler;
  if (sched.max_model_len < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_model_len: ", sched.max_model_len, " is less than 2"));
  }
  if (sched.max_model_len > model.max_position) {
    return absl::InvalidArgumentError(absl::StrCat("max_model_len: ", sched.max_model_len,
                                                   " is more than the model's context of ",
                                                   model.max_position));
  }
  // A share of free memory is known only once the weights are there; until then one page stands for
  // it, so that what else is wrong with the configuration shows before anything is loaded.
  const bool by_share = sched.num_pages == 0 && config_.kv_cache_share > 0;
  if (!by_share) {
    absl::Status chosen = ChoosePages(model, *backend_, &config_);
    if (!chosen.ok()) return chosen;
  }
  scheduler::SchedulerConfig inner = sched;
  if (by_share) inner.num_pages = 1;
  // The queue is bounded in Submit, which knows requests that the engine thread has not seen yet.
  inner.max_queued_requests = std::numeric_limits<int32_t>::max();
  inner.max_queued_tokens = std::numeric_limits<int32_t>::max();
  absl::StatusOr<std::unique_ptr<scheduler::Scheduler>> created =
      scheduler::Scheduler::Create(inner);
  if (!created.ok()) return created.status();
  if (absl::Status loaded = LoadModel(checkpoint, by_share); !loaded.ok()) return loaded;
  if (inner.num_pages != sched.num_pages) {
    inner.num_pages = sched.num_pages;
    created = scheduler::Scheduler::Create(inner);
    if (!created.ok()) return created.status();
  }
  scheduler_ = *std::move(created);
  limits_ = {.vocab_size = model.vocab_size,
             .max_model_len = sched.max_model_len,
             .page_tokens = sched.page_tokens,
             .num_pages = sched.num_pages,
             .max_logprobs = config_.max_logprobs,
             .max_n = config_.max_n};
  absl::StatusOr<std::unique_ptr<kernels::KvCache>> cache =
      CreateCache(config_, *transformer_, *backend_);
  if (!cache.ok()) return cache.status();
  cache_ = *std::move(cache);
  if (config_.allow_traces) {
    recorder_ = std::make_unique<TraceRecorder>(
        TraceRecorder::Options{.page_tokens = sched.page_tokens, .num_pages = sched.num_pages},
        *backend_, *transformer_, cache_->config());
  }

  for (Policy policy : {Policy::kThroughput, Policy::kPinned, Policy::kPortable}) {
    PolicySupport& support = support_[policy];
    absl::StatusOr<std::string> tag = backend_->NumericsTag(policy);
    const auto refused = config_.refused_policies.find(policy);
    if (std::string refusal = transformer_->RefusalOf(policy); tag.ok() && !refusal.empty()) {
      tag = absl::FailedPreconditionError(refusal);
    }
    support.honoured = tag.ok() && refused == config_.refused_policies.end();
    if (refused != config_.refused_policies.end()) {
      support.refusal = refused->second;
    } else if (!tag.ok()) {
      support.refusal = std::string(tag.status().message());
    } else if (kernels::IsStrong(policy)) {
      support.numerics_id =
          absl::StrCat(*tag, "/kv-", std::string(kernels::InfoOf(config_.kv_cache_dtype).name));
    }
  }
  // A policy that is not honoured gets no rows; its class is of no account.
  if (support_[Policy::kPinned].numerics_id != support_[Policy::kPortable].numerics_id) {
    classes_.portable = classes_.pinned + 1;
  }
  runner_ = std::make_unique<StepRunner>(*backend_, *transformer_, *cache_,
                                         config_.throughput_activations, classes_);
  if (config_.allow_traces) runner_->KeepRouting();
  std::random_device entropy;
  seed_source_.seed((static_cast<uint64_t>(entropy()) << 32) | entropy());
  stats_.kv_cache_bytes = static_cast<int64_t>(cache_->size_bytes());
  stats_.weight_bytes_in_memory = transformer_->weight_bytes();
  stats_.scheduler = scheduler_->stats();
  if (absl::Status watched = WatchRanks(); !watched.ok()) return watched;
  if (absl::Status tried = TryDecodeSteps(); !tried.ok()) return tried;
  thread_ = std::thread([this] { Loop(); });
  return absl::OkStatus();
}

absl::Status EngineImpl::Validate(const GenerationRequest& request) const {
  absl::Status status = ValidateRequest(request, limits_);
  if (!status.ok()) return status;
  const PolicySupport& support = support_.at(request.policy);
  if (!support.honoured) {
    return absl::FailedPreconditionError(
        absl::StrCat("determinism: ", std::string(NameOf(request.policy)),
                     " cannot be honoured: ", support.refusal));
  }
  if (request.trace && !config_.allow_traces) {
    return absl::FailedPreconditionError(
        "trace: this server records none (it was started without --allow-traces), because a trace "
        "shows the load of others");
  }
  return absl::OkStatus();
}

absl::StatusOr<RequestId> EngineImpl::Submit(GenerationRequest request,
                                             std::shared_ptr<ResponseSink> sink,
                                             uint64_t* seed_used) {
  absl::Status valid = Validate(request);
  if (!valid.ok()) return valid;
  auto state = std::make_unique<RequestState>();
  state->max_output_tokens = MaxOutputTokens(request, limits_);
  state->request = std::move(request);
  if (state->request.claim != nullptr) state->request.cache_salt = PrivateSalt();
  state->sink = std::move(sink);
  state->arrival = absl::Now();
  const int64_t sequences = state->request.sampling.n;
  const int64_t tokens = sequences * state->num_input_tokens();
  RequestId id;
  {
    std::lock_guard lock(mu_);
    if (!failure_.ok()) return failure_;
    if (draining_ || stopping_) return absl::UnavailableError("the server is shutting down");
    if (queued_sequences_ + sequences > config_.scheduler.max_queued_requests) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: ", queued_sequences_, " of at most ",
                       config_.scheduler.max_queued_requests, " sequences are waiting"));
    }
    if (queued_tokens_ + tokens > config_.scheduler.max_queued_tokens) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: ", queued_tokens_, " of at most ",
                       config_.scheduler.max_queued_tokens, " prompt tokens are waiting"));
    }
    queued_sequences_ += sequences;
    queued_tokens_ += tokens;
    ++live_requests_;
    id = next_request_++;
    state->id = id;
    state->seed =
        state->request.sampling.seed.has_value() ? *state->request.sampling.seed : seed_source_();
    if (seed_used != nullptr) *seed_used = state->seed;
    inbox_.push_back(std::move(state));
  }
  wake_.notify_one();
  return id;
}

void EngineImpl::Cancel(RequestId id) {
  {
    std::lock_guard lock(mu_);
    cancelled_.push_back(id);
  }
  wake_.notify_one();
}

void EngineImpl::Drain(absl::Time deadline) {
  std::unique_lock lock(mu_);
  draining_ = true;
  const auto until = absl::ToChronoTime(std::min(deadline, absl::Now() + absl::Hours(24 * 365)));
  idle_.wait_until(lock, until, [this] { return live_requests_ == 0; });
  if (live_requests_ == 0) return;
  abandon_ = true;
  wake_.notify_one();
  idle_.wait(lock, [this] { return live_requests_ == 0; });
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config,
                                                       std::unique_ptr<kernels::Backend> backend,
                                                       const model::Checkpoint& checkpoint,
                                                       const model::Tokenizer& tokenizer) {
  auto engine = std::make_unique<EngineImpl>(config, std::move(backend), tokenizer);
  absl::Status started = engine->Start(checkpoint);
  if (!started.ok() && config.communicator != nullptr) config.communicator->Abort(started);
  if (!started.ok()) return started;
  return engine;
}

}  // namespace verbatim::engine

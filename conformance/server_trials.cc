// The perturbations that need real server processes: answers over gRPC against the engine's own.
#include "conformance/server_trials.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "conformance/wave_builder.h"
#include "lab/server_process.h"

namespace verbatim::conformance {
namespace {

using lab::ServerProcess;

constexpr absl::Duration kStartTimeout = absl::Minutes(5);

// A request option that must not move bits. New options of the API belong into this table.
struct RequestOption {
  const char* label;
  void (*set)(v1::GenerateRequest&);
};
constexpr RequestOption kRequestOptions[] = {
    {"receipt",
     [](v1::GenerateRequest& request) {
       // THROUGHPUT has none.
       request.set_return_receipt(request.determinism() != v1::DETERMINISM_THROUGHPUT);
     }},
    {"trace of decisions",
     [](v1::GenerateRequest& request) { request.set_trace(v1::TRACE_LEVEL_DECISIONS); }},
    {"trace of layers",
     [](v1::GenerateRequest& request) { request.set_trace(v1::TRACE_LEVEL_LAYERS); }},
    {"prompt token ids returned",
     [](v1::GenerateRequest& request) { request.set_return_prompt_token_ids(true); }},
    {"prefix cache disabled",
     [](v1::GenerateRequest& request) { request.set_disable_prefix_cache(true); }},
    {"own request id", [](v1::GenerateRequest& request) { request.set_request_id("mine"); }},
    {"own cache salt", [](v1::GenerateRequest& request) { request.set_cache_salt("mine"); }},
    {"special tokens kept in the text",
     [](v1::GenerateRequest& request) {
       request.mutable_sampling()->set_skip_special_tokens(false);
     }},
};

v1::GenerateRequest ToMessage(const engine::GenerationRequest& request) {
  v1::GenerateRequest out;
  for (const int32_t token : request.prompt) out.mutable_token_ids()->add_ids(token);
  out.set_determinism(static_cast<v1::Determinism>(request.policy));
  out.set_cache_salt(request.cache_salt);
  const engine::SamplingOptions& s = request.sampling;
  v1::SamplingParams& to = *out.mutable_sampling();
  to.set_temperature(s.temperature);
  to.set_top_k(s.top_k);
  to.set_top_p(s.top_p);
  to.set_repetition_penalty(s.repetition_penalty);
  to.set_frequency_penalty(s.frequency_penalty);
  for (const auto& [token, bias] : s.logit_bias) (*to.mutable_logit_bias())[token] = bias;
  to.set_seed(*s.seed);
  to.set_ignore_eos(s.ignore_eos);
  to.set_max_tokens(*s.max_tokens);
  if (s.logprobs >= 0) to.set_logprobs(s.logprobs);
  if (s.prompt_logprobs >= 0) to.set_prompt_logprobs(s.prompt_logprobs);
  return out;
}

engine::PositionLogprobs FromMessage(const v1::PositionLogprobs& position) {
  const auto entry = [](const v1::TokenLogprob& from) {
    return kernels::TokenLogprob{from.token(), from.logprob(), from.rank()};
  };
  engine::PositionLogprobs out;
  out.chosen = entry(position.chosen());
  for (const v1::TokenLogprob& top : position.top()) out.top.push_back(entry(top));
  return out;
}

void Take(const v1::GenerateResponse& message, Answer* answer) {
  answer->samples.resize(1);
  SampleAnswer& sample = answer->samples[0];
  for (const v1::PositionLogprobs& position : message.prompt_logprobs().positions()) {
    answer->prompt.push_back(FromMessage(position));
  }
  for (const int32_t token : message.delta().token_ids()) sample.tokens.push_back(token);
  for (const v1::PositionLogprobs& position : message.delta().logprobs()) {
    sample.logprobs.push_back(FromMessage(position));
  }
  if (message.has_finished()) {
    sample.reason = static_cast<engine::FinishReason>(message.finished().reason());
    sample.logits_sha256 = message.finished().logits_sha256();
  }
}

// Sends all requests, at most `concurrency` at once, and returns their answers.
std::vector<Answer> Ask(client::Client& client, const std::vector<v1::GenerateRequest>& requests,
                        size_t concurrency) {
  std::vector<Answer> answers(requests.size());
  std::mutex mutex;
  std::condition_variable changed;
  size_t running = 0;
  std::deque<std::shared_ptr<client::Call>> calls;
  for (size_t i = 0; i < requests.size(); ++i) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return running < concurrency; });
      ++running;
    }
    calls.push_back(client.Start(
        requests[i], client::Clock::now(),
        [answer = &answers[i]](const v1::GenerateResponse& message) { Take(message, answer); },
        [&, answer = &answers[i]](const client::CallRecord& record) {
          answer->status = record.status;
          const std::lock_guard lock(mutex);
          --running;
          changed.notify_one();
        }));
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return running == 0; });
  return answers;
}

// The answers of an engine in this process, each request alone. Over gRPC the rows of a prompt are
// known only by their log-probabilities, those of the output only by their chain.
class References {
 public:
  static absl::StatusOr<References> Compute(const SuiteOptions& suite,
                                            const PolicyUnderTest& policy) {
    absl::StatusOr<LoadedModel> model = suite.open();
    if (!model.ok()) return model.status();
    References out;
    const Workload workload(suite.workload, *model->tokenizer, suite.random_ids);
    const int64_t context = suite.workload.max_model_len;
    auto engine = TrialEngine::Create(*model, {.device = suite.device}, 4 * context, context);
    if (!engine.ok()) return engine.status();
    out.numerics_id_ = (*engine)->engine().SupportOf(policy.policy).numerics_id;
    for (const Subject& subject : workload.subjects()) {
      engine::GenerationRequest request = subject.request;
      request.policy = policy.policy;
      request.cache_salt = subject.name;
      Answer answer = (*engine)->RunWave({{.request = request}}).front();
      if (!answer.status.ok()) return answer.status;
      out.names_.push_back(subject.name);
      out.requests_.push_back(ToMessage(request));
      out.answers_.push_back(std::move(answer));
    }
    return out;
  }

  const std::vector<v1::GenerateRequest>& requests() const { return requests_; }
  const std::string& numerics_id() const { return numerics_id_; }

  // `rounds`: how often the requests were asked, one after the other.
  void Compare(const std::vector<Answer>& observed, const std::string& label, Cell* cell) const {
    for (size_t i = 0; i < observed.size(); ++i) {
      const size_t subject = i % answers_.size();
      Answer reference = answers_[subject];
      reference.prompt.clear();
      Comparison one = CompareAnswers(reference, 0, observed[i], 0);
      one.Add(ComparePrompts(answers_[subject], observed[i]));
      one.requests = 1;
      one.requests_differing = one.mismatches() > 0 ? 1 : 0;
      if (one.first.has_value()) {
        one.first->variant = label;
        one.first->request = names_[subject];
      }
      cell->result.Add(one);
    }
  }

 private:
  // Fingerprints do not travel: log-probabilities stand in for them.
  static Comparison ComparePrompts(Answer reference, Answer observed) {
    for (auto* positions : {&reference.prompt, &observed.prompt}) {
      for (engine::PositionLogprobs& position : *positions) position.row_fingerprint = {};
    }
    reference.samples.assign(1, {});
    observed.samples.assign(1, {});
    reference.status = observed.status = absl::OkStatus();
    Comparison out = CompareAnswers(reference, 0, observed, 0);
    out.rows_compared = out.rows_differing = 0;
    return out;
  }

  std::string numerics_id_;
  std::vector<std::string> names_;
  std::vector<v1::GenerateRequest> requests_;
  std::vector<Answer> answers_;
};

class Trials {
 public:
  explicit Trials(const ServerTrialOptions& options) : options_(options) {}

  absl::Status Run(const PolicyUnderTest& policy, std::vector<Cell>* cells);

 private:
  absl::StatusOr<std::unique_ptr<ServerProcess>> Serve(std::vector<std::string> flags) {
    flags.push_back(absl::StrCat("--model=", options_.model_path));
    flags.push_back("--kv-cache-bytes=512MiB");
    flags.push_back("--kv-cache-dtype=float32");
    flags.push_back(absl::StrCat("--device=", options_.suite.device));
    flags.push_back(absl::StrCat("--max-model-len=", options_.suite.workload.max_model_len));
    return ServerProcess::Start(options_.server_binary, flags, kStartTimeout, options_.progress);
  }
  Cell NewCell(const std::string& perturbation, const std::string& what) const {
    Cell cell;
    cell.model = options_.suite.model_name;
    cell.policy = policy_.name();
    cell.perturbation = perturbation;
    cell.what = what;
    cell.promised = policy_.strong();
    cell.numerics_id = references_->numerics_id();
    if (options_.progress) options_.progress(absl::StrCat(cell.policy, ", ", perturbation));
    return cell;
  }
  void Finish(Cell cell, std::chrono::steady_clock::time_point start, std::vector<Cell>* cells) {
    cell.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    cell.exercised = cell.result.requests > 0;
    cells->push_back(std::move(cell));
  }
  // The subjects `rounds` times, with as many requests of the other policy in between.
  std::vector<Answer> AskUnderLoad(client::Client& client, int rounds) const;

  const ServerTrialOptions& options_;
  PolicyUnderTest policy_;
  std::unique_ptr<References> references_;
};

std::vector<Answer> Trials::AskUnderLoad(client::Client& client, int rounds) const {
  std::vector<v1::GenerateRequest> mixed;
  for (int round = 0; round < rounds; ++round) {
    for (v1::GenerateRequest request : references_->requests()) {
      request.set_cache_salt(absl::StrCat("round ", round / 2));
      mixed.push_back(request);
      request.set_determinism(static_cast<v1::Determinism>(OtherPolicy(policy_.policy)));
      request.mutable_sampling()->set_seed(static_cast<uint64_t>(round));
      request.mutable_sampling()->clear_prompt_logprobs();
      mixed.push_back(request);
    }
  }
  const std::vector<Answer> all = Ask(client, mixed, 24);
  std::vector<Answer> out;
  for (size_t i = 0; i < all.size(); i += 2) out.push_back(all[i]);
  return out;
}

absl::Status Trials::Run(const PolicyUnderTest& policy, std::vector<Cell>* cells) {
  policy_ = policy;
  absl::StatusOr<References> references = References::Compute(options_.suite, policy);
  if (!references.ok()) return references.status();
  references_ = std::make_unique<References>(*std::move(references));
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const std::vector<v1::GenerateRequest>& requests = references_->requests();

  auto start = now();
  Cell process = NewCell("server: process", "a server process against an engine in this process");
  auto first = Serve({"--allow-traces"});
  if (!first.ok()) return first.status();
  references_->Compare(Ask(*(*first)->client(), requests, 1), "one at a time", &process);
  Finish(std::move(process), start, cells);

  start = now();
  Cell streaming = NewCell("server: streaming", "24 streams at once, with other traffic");
  references_->Compare(AskUnderLoad(*(*first)->client(), 6), "24 streams", &streaming);
  Finish(std::move(streaming), start, cells);

  start = now();
  Cell option_cell = NewCell("server: request options", "options that do not choose the answer");
  for (const RequestOption& option : kRequestOptions) {
    std::vector<v1::GenerateRequest> changed = requests;
    for (v1::GenerateRequest& request : changed) option.set(request);
    references_->Compare(Ask(*(*first)->client(), changed, 4), option.label, &option_cell);
  }
  Finish(std::move(option_cell), start, cells);

  start = now();
  Cell replica = NewCell("server: replica", "a second server, configured otherwise, beside it");
  auto second = Serve({"--threads=1", "--block-size=64", "--max-num-batched-tokens=96",
                       "--max-num-seqs=12", "--no-enable-prefix-caching"});
  if (!second.ok()) return second.status();
  references_->Compare(AskUnderLoad(*(*second)->client(), 4), "second server", &replica);
  references_->Compare(Ask(*(*first)->client(), requests, 1), "first server", &replica);
  Finish(std::move(replica), start, cells);

  start = now();
  Cell restart =
      NewCell("server: restart", "the server is stopped, and started with a response cache");
  (*first)->Stop();
  (*second)->Stop();
  auto again = Serve({"--response-cache=64"});
  if (!again.ok()) return again.status();
  references_->Compare(AskUnderLoad(*(*again)->client(), 2), "after the restart", &restart);
  Finish(std::move(restart), start, cells);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Cell>> RunServerTrials(const ServerTrialOptions& options) {
  std::vector<Cell> cells;
  for (const PolicyUnderTest& policy : options.suite.policies) {
    // Another type of cached values or activations is another server, and tried without one.
    if (policy.activations != kernels::ActivationType::kF32 ||
        policy.kv_cache_dtype != kernels::DType::kF32) {
      continue;
    }
    Trials trials(options);
    if (absl::Status status = trials.Run(policy, &cells); !status.ok()) return status;
  }
  return cells;
}

}  // namespace verbatim::conformance

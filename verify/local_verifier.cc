// An engine for receipts alone.
#include "verify/local_verifier.h"

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/version.h"
#include "kernels/device/open_backend.h"
#include "server/receipt_check.h"

namespace verbatim::verify {
namespace {

class VerdictSink final : public engine::ResponseSink {
 public:
  void OnPromptLogprobs(std::vector<engine::PositionLogprobs>) override {}
  void OnDelta(engine::DeltaEvent) override {}
  void OnFinished(engine::FinishedEvent) override {}
  void OnVerified(const engine::VerificationEvent& event) override { verdict = event; }
  void OnDone(absl::Status status, engine::UsageEvent used) override {
    std::lock_guard lock(mutex_);
    usage = used;
    done_ = std::move(status);
    changed_.notify_one();
  }
  absl::Status Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_.has_value(); });
    return *done_;
  }

  // Read only after Wait().
  std::optional<engine::VerificationEvent> verdict;
  engine::UsageEvent usage;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<absl::Status> done_;
};

int64_t TokensOf(const receipt::Receipt& receipt) {
  return static_cast<int64_t>(receipt.prompt_token_ids.size() + receipt.output_token_ids.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalVerifier>> LocalVerifier::Create(
    const LocalOptions& options, const std::vector<receipt::Parsed>& receipts) {
  auto verifier = std::make_unique<LocalVerifier>();
  auto checkpoint = model::Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return checkpoint.status();
  verifier->checkpoint_ = *std::move(checkpoint);
  // Reads every weight once; meanwhile they are packed.
  std::future<std::string> fingerprint =
      std::async(std::launch::async,
                 [model = verifier->checkpoint_.get()] { return model->WeightsFingerprint(); });
  auto tokenizer = verifier->checkpoint_->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  verifier->tokenizer_ = *std::move(tokenizer);

  int64_t longest = 2;
  for (const receipt::Parsed& parsed : receipts) {
    longest = std::max(longest, TokensOf(parsed.receipt));
  }
  if (const int64_t context = verifier->checkpoint_->config().max_position; longest > context) {
    return absl::FailedPreconditionError(
        absl::StrCat("receipt: its ", longest, " tokens exceed the model's context of ", context));
  }
  engine::EngineConfig config;
  config.scheduler.max_model_len = longest;
  config.scheduler.max_num_batched_tokens = std::min<int64_t>(longest, 512);
  config.scheduler.max_num_seqs = std::min<int64_t>(longest, 64);  // logit rows of a slice
  config.scheduler.num_pages = 1 + longest / config.scheduler.page_tokens;
  const std::string bf16(kernels::InfoOf(kernels::DType::kBF16).name);
  if (absl::EndsWith(receipts.at(0).receipt.numerics_id, absl::StrCat("/kv-", bf16))) {
    config.kv_cache_dtype = kernels::DType::kBF16;
  }
  auto backend = kernels::OpenBackend(
      {.device = options.device, .threads = options.threads, .isa = options.isa});
  if (!backend.ok()) return backend.status();
  auto engine = engine::Engine::Create(config, *std::move(backend), *verifier->checkpoint_,
                                       *verifier->tokenizer_);
  if (!engine.ok()) return engine.status();
  verifier->engine_ = *std::move(engine);
  verifier->identity_ = {.server_version = engine::kVersion,
                         .weights_sha256 = fingerprint.get(),
                         .tokenizer_sha256 = std::string(verifier->tokenizer_->fingerprint())};
  return verifier;
}

absl::Status LocalVerifier::Verify(const receipt::Receipt& receipt,
                                   v1::VerifyReceiptResponse* report) {
  if (!server::CheckIdentity(receipt, identity_, *engine_, report)) return absl::OkStatus();
  auto sink = std::make_shared<VerdictSink>();
  if (auto id = engine_->Submit(server::ToRequest(receipt), sink); !id.ok()) return id.status();
  if (absl::Status status = sink->Wait(); !status.ok()) return status;
  if (!sink->verdict.has_value()) return absl::InternalError("no verdict came");
  server::Conclude(*sink->verdict, sink->usage, report);
  return absl::OkStatus();
}

}  // namespace verbatim::verify

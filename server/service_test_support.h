// Fakes for tests of the service: a tokenizer whose tokens are bytes, and an engine whose answers
// the test writes.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "model/tokenizer.h"

namespace verbatim::server {

// Token i is byte i; 256 is a special token "<end>".
class ByteTokenizer final : public model::Tokenizer {
 public:
  ByteTokenizer() {
    for (int i = 0; i < 256; ++i) bytes_.push_back(std::string(1, static_cast<char>(i)));
    bytes_.push_back("<end>");
  }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const model::EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_special_tokens) ids.push_back(256);
    for (char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string_view TokenBytes(int32_t id) const override { return bytes_.at(id); }
  std::string_view FirstTokenBytes(int32_t id) const override { return TokenBytes(id); }
  bool IsSpecial(int32_t id) const override { return id == 256; }
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string text;
    for (int32_t id : ids) {
      if (!skip_special_tokens || id != 256) text += bytes_.at(id);
    }
    return text;
  }
  int32_t vocab_size() const override { return 257; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  absl::Span<const int32_t> eos_ids() const override { return eos_; }
  std::optional<int32_t> IdOf(std::string_view text) const override {
    return text == "<end>" ? std::optional<int32_t>(256) : std::nullopt;
  }
  std::string_view chat_template() const override { return ""; }
  std::string_view fingerprint() const override { return "bytes"; }

 private:
  std::vector<std::string> bytes_;
  std::vector<int32_t> eos_ = {256};
};

// The test plays the engine's thread: it takes a submitted request's sink and calls it.
class FakeEngine final : public engine::Engine {
 public:
  struct Submitted {
    engine::RequestId id;
    engine::GenerationRequest request;
    std::shared_ptr<engine::ResponseSink> sink;
  };

  absl::Status submit_status;  // what Submit answers
  // Called inside Submit, before it returns.
  std::function<void(engine::ResponseSink&)> on_submit;
  // Called on the canceller's thread.
  std::function<void(engine::RequestId)> on_cancel;
  engine::EngineStats next_stats;

  absl::Status Validate(const engine::GenerationRequest&) const override { return submit_status; }
  absl::StatusOr<engine::RequestId> Submit(engine::GenerationRequest request,
                                           std::shared_ptr<engine::ResponseSink> sink,
                                           uint64_t* seed_used) override {
    if (!submit_status.ok()) return submit_status;
    if (seed_used != nullptr) *seed_used = request.sampling.seed.value_or(4711);
    if (on_submit) on_submit(*sink);
    std::lock_guard lock(mutex_);
    submitted_.push_back({next_id_, std::move(request), std::move(sink)});
    changed_.notify_all();
    return next_id_++;
  }
  void Cancel(engine::RequestId id) override {
    if (on_cancel) on_cancel(id);
    std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
    changed_.notify_all();
  }
  void Drain(absl::Time) override {}
  engine::PolicySupport SupportOf(kernels::Policy policy) const override {
    if (policy == kernels::Policy::kPinned) return {false, "", "no pins here"};
    return {true, policy == kernels::Policy::kPortable ? "v1/test" : "", ""};
  }
  engine::EngineStats stats() const override { return next_stats; }
  absl::Status failure() const override { return absl::OkStatus(); }
  const engine::EngineConfig& config() const override { return config_; }

  // The next request nobody has taken; waits for it.
  Submitted Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !submitted_.empty(); });
    Submitted first = std::move(submitted_.front());
    submitted_.erase(submitted_.begin());
    return first;
  }
  void WaitForCancel(engine::RequestId id) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return std::find(cancelled_.begin(), cancelled_.end(), id) != cancelled_.end();
    });
  }

 private:
  engine::EngineConfig config_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Submitted> submitted_;
  std::vector<engine::RequestId> cancelled_;
  engine::RequestId next_id_ = 1;
};

inline engine::DeltaEvent TextDelta(int32_t index, const std::string& text) {
  engine::DeltaEvent event;
  event.index = index;
  event.text = text;
  for (char c : text) event.tokens.push_back(static_cast<unsigned char>(c));
  return event;
}

inline engine::FinishedEvent Finished(int32_t index, int64_t output_tokens) {
  engine::FinishedEvent event;
  event.index = index;
  event.output_tokens = output_tokens;
  event.logits_sha256 = absl::StrCat("hash", index);
  return event;
}

}  // namespace verbatim::server

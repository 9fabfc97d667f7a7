// Keys, bounded storage and recording of whole answers.
#include "server/response_cache.h"

#include <openssl/sha.h>

#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace verbatim::server {
namespace {

// Of an entry without events: key twice, list and map nodes, the answer itself.
constexpr int64_t kEntryBytes = 512;
constexpr int64_t kEventBytes = 128;

int64_t BytesOf(const std::vector<engine::PositionLogprobs>& positions) {
  int64_t bytes = 0;
  for (const engine::PositionLogprobs& position : positions) {
    bytes += sizeof(position) + position.top.size() * sizeof(kernels::TokenLogprob);
  }
  return bytes;
}

}  // namespace

bool IsCacheable(const engine::GenerationRequest& request) {
  // A trace tells of a computation, which a hit has not.
  return kernels::IsStrong(request.policy) && request.read_prefix_cache && !request.trace &&
         (request.sampling.seed.has_value() || request.sampling.temperature == 0);
}

ResponseKey KeyOf(const v1::GenerateRequest& wire, const engine::GenerationRequest& request,
                  const std::string& numerics_id, const v1::GetModelInfoResponse& model) {
  v1::GenerateRequest whole = wire;
  whole.clear_model();
  whole.clear_request_id();
  whole.clear_return_receipt();
  whole.clear_return_prompt_token_ids();
  whole.clear_add_special_tokens();  // has become tokens
  whole.mutable_token_ids()->mutable_ids()->Assign(request.prompt.begin(), request.prompt.end());
  whole.set_determinism(static_cast<v1::Determinism>(request.policy));
  if (request.sampling.seed.has_value()) whole.mutable_sampling()->set_seed(*request.sampling.seed);
  std::string text = absl::StrCat("verbatim response cache v1\n", model.weights_sha256(), "\n",
                                  model.tokenizer_sha256(), "\n", numerics_id, "\n");
  {
    google::protobuf::io::StringOutputStream stream(&text);
    google::protobuf::io::CodedOutputStream out(&stream);
    out.SetSerializationDeterministic(true);  // maps by key
    whole.SerializeToCodedStream(&out);
  }
  ResponseKey key;
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), key.data());
  return key;
}

std::shared_ptr<const CachedAnswer> ResponseCache::Find(const ResponseKey& key) {
  std::lock_guard lock(mutex_);
  const auto it = by_key_.find(key);
  if (it == by_key_.end()) {
    ++stats_.misses;
    return nullptr;
  }
  ++stats_.hits;
  recent_.splice(recent_.begin(), recent_, it->second);
  return it->second->answer;
}

void ResponseCache::Insert(const ResponseKey& key, std::shared_ptr<const CachedAnswer> answer) {
  if (answer->bytes > max_answer_bytes()) return;
  std::list<Entry> evicted;  // freed outside the lock
  std::lock_guard lock(mutex_);
  if (by_key_.contains(key)) return;
  stats_.size_bytes += answer->bytes;
  recent_.push_front({key, std::move(answer)});
  by_key_[key] = recent_.begin();
  while (stats_.size_bytes > stats_.capacity_bytes) {
    stats_.size_bytes -= recent_.back().answer->bytes;
    by_key_.erase(recent_.back().key);
    evicted.splice(evicted.begin(), recent_, std::prev(recent_.end()));
    ++stats_.evictions;
  }
  stats_.entries = static_cast<int64_t>(by_key_.size());
}

ResponseCache::Stats ResponseCache::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

bool RecordingSink::Grow(int64_t bytes) {
  if (answer_ == nullptr) return false;
  answer_->bytes += bytes;
  if (answer_->bytes + kEntryBytes <= cache_->max_answer_bytes()) return true;
  answer_.reset();
  return false;
}

void RecordingSink::OnPromptLogprobs(std::vector<engine::PositionLogprobs> positions) {
  if (Grow(kEventBytes + BytesOf(positions))) answer_->events.emplace_back(positions);
  inner_->OnPromptLogprobs(std::move(positions));
}

void RecordingSink::OnDelta(engine::DeltaEvent event) {
  const auto open = open_.find(event.index);
  const bool joins = open != open_.end();
  if (Grow((joins ? 0 : kEventBytes) + static_cast<int64_t>(event.text.size()) +
           static_cast<int64_t>(sizeof(int32_t) * event.tokens.size()) +
           static_cast<int64_t>(sizeof(float) * event.top_margins.size()) +
           BytesOf(event.logprobs))) {
    if (joins) {
      auto& delta = std::get<engine::DeltaEvent>(answer_->events[open->second]);
      delta.text += event.text;
      delta.tokens.insert(delta.tokens.end(), event.tokens.begin(), event.tokens.end());
      delta.logprobs.insert(delta.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
      delta.top_margins.insert(delta.top_margins.end(), event.top_margins.begin(),
                               event.top_margins.end());
    } else {
      open_[event.index] = answer_->events.size();
      answer_->events.emplace_back(event);
    }
  }
  inner_->OnDelta(std::move(event));
}

void RecordingSink::OnFinished(engine::FinishedEvent event) {
  open_.erase(event.index);
  const int64_t tokens = event.output_tokens;
  if (Grow(2 * kEventBytes +
           tokens * static_cast<int64_t>(sizeof(int32_t) + sizeof(numerics::RowFingerprint)))) {
    answer_->events.emplace_back(event);
    if (event.record != nullptr) answer_->seed = event.record->seed;
  }
  inner_->OnFinished(std::move(event));
}

void RecordingSink::OnDone(absl::Status status, engine::UsageEvent usage) {
  if (status.ok() && Grow(kEntryBytes)) {
    answer_->usage = usage;
    cache_->Insert(key_, std::move(answer_));
  }
  inner_->OnDone(std::move(status), usage);
}

}  // namespace verbatim::server

// Whole answers of requests that are pure functions, kept for equal requests to come.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "engine/generation.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::server {

using ResponseKey = std::array<uint8_t, 32>;

// The events of one answer, deltas of a sample joined, in the order in which they began.
struct CachedAnswer {
  using Event = std::variant<std::vector<engine::PositionLogprobs>, engine::DeltaEvent,
                             engine::FinishedEvent>;
  std::vector<Event> events;
  engine::UsageEvent usage;  // of the computation
  uint64_t seed = 0;
  int64_t bytes = 0;
};

// Whether the answer to `request` follows from it alone: a strong policy, and greedy or with a
// seed. A request that asks to compute every position of its prompt, or for the trace of a
// computation, asks for work, not for a copy.
bool IsCacheable(const engine::GenerationRequest& request);

// SHA-256 over model, tokenizer, numerics id and every field of the request as it came, its prompt
// as tokens, its policy and seed as resolved. Left out: name, request id, and what only adds to the
// answer without a computation (receipt, prompt ids). Every field, so that none can be forgotten;
// a request that spells out a default is another key.
ResponseKey KeyOf(const v1::GenerateRequest& wire, const engine::GenerationRequest& request,
                  const std::string& numerics_id, const v1::GetModelInfoResponse& model);

// Least recently used answers are evicted. Thread-safe.
class ResponseCache {
 public:
  struct Stats {
    int64_t capacity_bytes = 0, size_bytes = 0, entries = 0, hits = 0, misses = 0, evictions = 0;
  };

  explicit ResponseCache(int64_t capacity_bytes) { stats_.capacity_bytes = capacity_bytes; }

  // Also the most that one hit can make a slow reader's queue hold.
  static constexpr int64_t kMaxAnswerBytes = 16 << 20;

  // Null when there is none. Counts a hit or a miss.
  std::shared_ptr<const CachedAnswer> Find(const ResponseKey& key);
  // Answers larger than max_answer_bytes() are not kept. One already there stays.
  void Insert(const ResponseKey& key, std::shared_ptr<const CachedAnswer> answer);
  int64_t max_answer_bytes() const { return std::min(stats_.capacity_bytes / 2, kMaxAnswerBytes); }
  Stats stats() const;

 private:
  struct Entry {
    ResponseKey key;
    std::shared_ptr<const CachedAnswer> answer;
  };
  mutable std::mutex mutex_;
  Stats stats_;              // guarded by mutex_, but for the capacity, which stays
  std::list<Entry> recent_;  // guarded by mutex_; most recently used first
  std::map<ResponseKey, std::list<Entry>::iterator> by_key_;  // guarded by mutex_
};

// Passes every event on to `inner` and keeps the answer once it is complete: not one that was
// cancelled or failed. The request must keep its record.
class RecordingSink final : public engine::ResponseSink {
 public:
  RecordingSink(std::shared_ptr<engine::ResponseSink> inner, ResponseCache* cache,
                const ResponseKey& key)
      : inner_(std::move(inner)), cache_(cache), key_(key) {}

  void OnPromptLogprobs(std::vector<engine::PositionLogprobs> positions) override;
  void OnDelta(engine::DeltaEvent event) override;
  void OnFinished(engine::FinishedEvent event) override;
  void OnDone(absl::Status status, engine::UsageEvent usage) override;

 private:
  // Counts; false, and nothing is kept any more, when the answer has become too large.
  bool Grow(int64_t bytes);

  const std::shared_ptr<engine::ResponseSink> inner_;
  ResponseCache* const cache_;
  const ResponseKey key_;
  std::shared_ptr<CachedAnswer> answer_ = std::make_shared<CachedAnswer>();  // null: too large
  std::map<int32_t, size_t> open_;  // the delta of each unfinished sample, in answer_->events
};

}  // namespace verbatim::server

// The messages of one stream that the client has not been sent yet, merged so that a slow reader
// costs few of them.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/generation.h"
#include "model/tokenizer.h"
#include "server/fragility_scores.h"
#include "trace/trace.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::server {

// Keeps the order in which events came, except that deltas of one sample join into one message of
// at most about kMessageBytes (clients refuse messages above 4 MiB by default). Not thread-safe.
class ResponseQueue {
 public:
  static constexpr int64_t kMessageBytes = 256 << 10;

  // The tokenizer gives the text of tokens in log-probabilities; it must outlive the queue.
  explicit ResponseQueue(const model::Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // Makes the receipts of finished samples, when their turn comes; without it they have none.
  using MakeReceipt = std::function<std::optional<v1::Receipt>(const engine::FinishedEvent&)>;
  void set_make_receipt(MakeReceipt make_receipt) { make_receipt_ = std::move(make_receipt); }

  // Scores every delta pushed from now on; finished samples then carry the report.
  void set_fragility(FragilityScores scores) { fragility_.emplace(std::move(scores)); }

  void PushFirst(v1::Accepted accepted);  // goes before everything already queued
  void Push(std::vector<engine::PositionLogprobs> prompt_logprobs);  // cut into several if large
  void Push(engine::DeltaEvent event);
  void Push(engine::FinishedEvent event);
  void Push(const engine::UsageEvent& event, bool response_cache_hit = false);

  // The next message; nullopt when there is none.
  std::optional<v1::GenerateResponse> Pop();
  void Clear();

  // What traces say of this server; to be set before the end of a traced sample is pushed.
  void set_trace_identity(std::string version, std::string weights_sha256) {
    trace_version_ = std::move(version);
    trace_weights_sha256_ = std::move(weights_sha256);
  }

  bool empty() const { return events_.empty(); }
  size_t size() const { return events_.size(); }
  // Estimated size of the queued deltas on the wire.
  int64_t delta_bytes() const { return delta_bytes_; }

 private:
  struct Delta {
    engine::DeltaEvent event;
    int64_t bytes = 0;
  };
  using Event = std::variant<v1::GenerateResponse, std::vector<engine::PositionLogprobs>, Delta,
                             engine::FinishedEvent>;

  void ToProto(const engine::FinishedEvent& in, v1::Finished* out) const;
  // Traces become JSON only when their turn comes, on the thread that sends them.
  void ToProto(trace::Trace& in, v1::DecisionTrace* out) const;
  void ToProto(const engine::PositionLogprobs& in, v1::PositionLogprobs* out) const;
  void ToProto(const kernels::TokenLogprob& in, v1::TokenLogprob* out) const;

  const model::Tokenizer& tokenizer_;
  MakeReceipt make_receipt_;
  std::optional<FragilityScores> fragility_;
  std::deque<Event> events_;
  int64_t delta_bytes_ = 0;
  std::string trace_version_, trace_weights_sha256_;
};

}  // namespace verbatim::server

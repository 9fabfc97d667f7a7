// A generation request as the engine takes it, and the events it answers with.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/ops/policy.h"
#include "kernels/ops/sampling.h"

namespace verbatim::engine {

using RequestId = uint64_t;

struct SamplingOptions {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<uint64_t> seed;  // absent: the engine draws one
  int32_t n = 1;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::optional<int64_t> max_tokens;  // absent: what the context leaves
  int64_t min_tokens = 0;
  int32_t logprobs = -1;         // -1: none
  int32_t prompt_logprobs = -1;  // -1: none
  bool skip_special_tokens = true;
  bool include_stop_str_in_output = false;
};

struct GenerationRequest {
  std::vector<int32_t> prompt;
  SamplingOptions sampling;
  kernels::Policy policy = kernels::Policy::kPortable;
  bool return_row_fingerprints = false;  // fills DeltaEvent::row_fingerprints
  std::string cache_salt;
  bool read_prefix_cache = true;
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason : uint8_t { kStop = 1, kLength = 2 };

struct PositionLogprobs {
  kernels::TokenLogprob chosen;  // token -1: no value (first prompt token)
  std::vector<kernels::TokenLogprob> top;
  numerics::RowFingerprint row_fingerprint;  // of the raw logits; zero for the first prompt token
};

struct DeltaEvent {
  int32_t index = 0;
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<PositionLogprobs> logprobs;  // one per token when asked for, else empty
  // Of the raw logits that each token was drawn from, when asked for, else empty.
  std::vector<numerics::RowFingerprint> row_fingerprints;
};

struct FinishedEvent {
  int32_t index = 0;
  FinishReason reason = FinishReason::kStop;
  std::string stop_reason;
  int64_t output_tokens = 0;
  std::string logits_sha256;  // hex
  float min_top_margin = 0;
};

struct UsageEvent {
  int64_t prompt_tokens = 0;
  int64_t cached_prompt_tokens = 0;
  int64_t output_tokens = 0;
  absl::Duration queue_time, time_to_first_token, total_time;
  int64_t preemptions = 0;
};

// Receives the events of one request, on the engine thread; must return at once. After OnDone
// nothing more is called.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void OnPromptLogprobs(std::vector<PositionLogprobs> positions) = 0;
  virtual void OnDelta(DeltaEvent event) = 0;
  virtual void OnFinished(FinishedEvent event) = 0;
  // The one terminal call: OK with the usage, or why the request ended without completing
  // (CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, INTERNAL naming layer or position for a non-finite
  // value).
  virtual void OnDone(absl::Status status, UsageEvent usage) = 0;
};

}  // namespace verbatim::engine

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
#include "kernels/numerics/row_fingerprint.h"
#include "kernels/ops/policy.h"
#include "kernels/ops/sampling.h"
#include "trace/trace.h"

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

enum class FinishReason : uint8_t { kStop = 1, kLength = 2 };

// What an earlier answer claims to be: one sample of the prompt and sampling options beside it.
struct AnswerClaim {
  int32_t sample_index = 0;
  std::vector<int32_t> output;                 // at least one token
  std::vector<numerics::RowFingerprint> rows;  // of the logits each output token was drawn from
  FinishReason reason = FinishReason::kStop;
  std::string stop_reason;
};

struct GenerationRequest {
  std::vector<int32_t> prompt;
  SamplingOptions sampling;
  kernels::Policy policy = kernels::Policy::kPortable;
  bool return_row_fingerprints = false;  // fills DeltaEvent::row_fingerprints
  std::string cache_salt;
  bool read_prefix_cache = true;
  bool trace = false;         // record what decided the bits (FinishedEvent::trace)
  bool trace_layers = false;  // and a fingerprint of every output token's row after each layer
  bool return_top_margins = false;  // fill DeltaEvent.top_margins
  absl::Time deadline = absl::InfiniteFuture();
  bool keep_record = false;  // FinishedEvent::record is filled
  // Set: nothing is generated. One forward pass over prompt and claimed output recomputes the rows,
  // tokens and end of the claim without reading the prefix cache; the answer is OnVerified. Needs a
  // strong policy, n = 1, a seed and max_tokens.
  std::shared_ptr<const AnswerClaim> claim;
};

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
  // Best raw logit minus the second best (kernels/ops/sampling.h): one per token when asked for,
  // else empty.
  std::vector<float> top_margins;
};

// What a receipt needs of a finished sample and the other events do not carry.
struct AnswerRecord {
  uint64_t seed = 0;                           // given or drawn
  int64_t max_output_tokens = 0;               // max_tokens, or what the context left
  std::vector<int32_t> output;                 // with a terminating EOS
  std::vector<numerics::RowFingerprint> rows;  // one per output token
};

// The first thing that differs between a claim and its recomputation.
struct ClaimDifference {
  std::string field;  // of a receipt: "row_fingerprints", "output_token_ids", "finish_reason"
                      // or "stop_reason"
  int64_t token_index = -1;      // of the output, or −1
  std::string expected, actual;  // as the claim says; as recomputed
};

struct VerificationEvent {
  std::optional<ClaimDifference> difference;  // absent: the claim is true
  int64_t rows_checked = 0;
};

struct FinishedEvent {
  int32_t index = 0;
  FinishReason reason = FinishReason::kStop;
  std::string stop_reason;
  int64_t output_tokens = 0;
  std::string logits_sha256;  // hex
  float min_top_margin = 0;
  std::shared_ptr<const AnswerRecord> record;  // when asked for
  // Of requests that asked for it; version and weights of its identity are left to the receiver.
  std::shared_ptr<trace::Trace> trace;
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
  // The answer to a request with a claim, instead of deltas and OnFinished.
  virtual void OnVerified(const VerificationEvent&) {}
  // The one terminal call: OK with the usage, or why the request ended without completing
  // (CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, INTERNAL naming layer or position for a non-finite
  // value).
  virtual void OnDone(absl::Status status, UsageEvent usage) = 0;
};

}  // namespace verbatim::engine

// What a request answered, bit by bit, and how two answers to the same request compare.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/generation.h"

namespace verbatim::conformance {

struct SampleAnswer {
  std::vector<int32_t> tokens;
  std::vector<numerics::RowFingerprint> rows;  // one per token; empty: only their chain is known
  std::vector<engine::PositionLogprobs> logprobs;  // one per token when asked for, else empty
  engine::FinishReason reason = engine::FinishReason::kStop;
  std::string logits_sha256;
};

struct Answer {
  absl::Status status = absl::UnknownError("not answered");
  std::vector<engine::PositionLogprobs> prompt;  // when asked for; entry 0 has no value
  std::vector<SampleAnswer> samples;
  engine::UsageEvent usage;
};

// Collects the events of one request. The callbacks run on the engine thread.
class RecordingSink final : public engine::ResponseSink {
 public:
  // `on_token`: after each token of any sample, with the number of tokens so far. `on_done`: last.
  RecordingSink(Answer* answer, std::function<void(int64_t)> on_token,
                std::function<void()> on_done)
      : answer_(answer), on_token_(std::move(on_token)), on_done_(std::move(on_done)) {}

  void OnPromptLogprobs(std::vector<engine::PositionLogprobs> positions) override;
  void OnDelta(engine::DeltaEvent event) override;
  void OnFinished(engine::FinishedEvent event) override;
  void OnDone(absl::Status status, engine::UsageEvent usage) override;

 private:
  SampleAnswer& Sample(int32_t index);

  Answer* answer_;
  std::function<void(int64_t)> on_token_;
  std::function<void()> on_done_;
  int64_t tokens_ = 0;
};

// Where two answers first part.
struct FirstDifference {
  std::string variant;  // of the perturbation; filled in by the suite
  std::string request;  // "subject 3"; filled in by the suite
  std::string what;     // "logits", "token", "log-probability", "status", "finish"
  std::string where;    // "prompt" or "output"
  int64_t index = -1;   // of the row in the prompt or in the output
  std::string reference, observed;
};

struct Comparison {
  int64_t requests = 0, requests_differing = 0;  // in anything
  int64_t answers_with_other_tokens = 0;         // among the requests
  int64_t tokens_compared = 0, tokens_differing = 0;
  int64_t rows_compared = 0, rows_differing = 0;  // logit rows, by their 128-bit fingerprints
  int64_t logprobs_compared = 0, logprobs_differing = 0;
  int64_t other_differing = 0;  // status or finish reason
  std::optional<FirstDifference> first;

  int64_t comparisons() const { return tokens_compared + rows_compared + logprobs_compared; }
  int64_t mismatches() const {
    return tokens_differing + rows_differing + logprobs_differing + other_differing;
  }
  void Add(const Comparison& other);
};

// Compares sample `observed_sample` of `observed` with sample `reference_sample` of `reference`,
// and, when both samples are 0, the prompt rows that both have. Rows are compared up to and with
// the first token that differs: behind it the contexts are different texts. Where an answer has no
// fingerprints, equal chains stand for equal rows, and different ones for one row that differs.
// Log-probabilities are compared by their bits, as many per position as both have.
Comparison CompareAnswers(const Answer& reference, int reference_sample, const Answer& observed,
                          int observed_sample);

}  // namespace verbatim::conformance

// What the engine remembers of a request in flight and of each of its samples.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/generation.h"
#include "engine/logits_hash.h"
#include "engine/stop_matcher.h"
#include "model/tokenizer.h"
#include "scheduler/step_plan.h"

namespace verbatim::engine {

struct RequestState;
class Verification;

// One sample: one sequence of the scheduler.
class SampleState {
 public:
  SampleState(RequestState& request, scheduler::SequenceId id, int32_t index,
              const model::Tokenizer& tokenizer);

  // The sampling row for the logits of `position` (the last known token); views into this object,
  // valid until the next call.
  kernels::SamplingRow NextRow();

  // Notes a token of the output: what NextRow() needs to know of it.
  void Advance(int32_t token);

  // Takes a drawn token and returns the event to emit. When the sample is over, `finished` is
  // filled.
  DeltaEvent TakeToken(const kernels::SampledRow& sampled, std::optional<FinishedEvent>& finished);

  RequestState& request() { return request_; }
  scheduler::SequenceId id() const { return id_; }
  int32_t index() const { return index_; }
  // Prompt, then generated tokens.
  int32_t TokenAt(int64_t position) const;
  int64_t num_tokens() const;
  // One per output token; kept only for traces.
  const std::vector<numerics::RowFingerprint>& logit_rows() const { return rows_; }
  // [output tokens][layers], for traces that want them.
  void KeepLayers(std::vector<numerics::RowFingerprint> layers) {
    layers_.push_back(std::move(layers));
  }
  const std::vector<std::vector<numerics::RowFingerprint>>& layers() const { return layers_; }
  int64_t num_output_tokens() const { return static_cast<int64_t>(output_.size()); }

 private:
  bool IsStopToken(int32_t token) const;
  void Count(int32_t token);

  RequestState& request_;
  const scheduler::SequenceId id_;
  const int32_t index_;
  const model::Tokenizer& tokenizer_;
  std::vector<int32_t> output_;
  std::vector<int32_t> banned_;              // before min_tokens
  std::vector<kernels::TokenCount> counts_;  // kept only when a penalty is in use
  std::map<int32_t, size_t> count_index_;
  model::StreamDetokenizer detokenizer_;
  StopMatcher stop_matcher_;
  LogitsHash hash_;
  std::vector<numerics::RowFingerprint> rows_;  // kept only for a record or a trace
  std::vector<std::vector<numerics::RowFingerprint>> layers_;
  float min_top_margin_ = std::numeric_limits<float>::infinity();
};

struct RequestState {
  RequestId id = 0;
  GenerationRequest request;
  uint64_t seed = 0;
  int64_t max_output_tokens = 0;
  std::shared_ptr<ResponseSink> sink;
  absl::Time arrival;
  absl::Time first_scheduled = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  int64_t cached_prompt_tokens = 0;
  int64_t output_tokens = 0;
  int64_t preemptions = 0;
  std::map<int32_t, std::unique_ptr<SampleState>> samples;  // live ones, by index
  int32_t next_sample = 0;       // samples from here on wait for the first one's prefix pages
  bool waiting_in_queue = true;  // counted in the engine's queue bounds
  std::vector<PositionLogprobs> prompt_logprobs;  // filled in position order when asked for
  int64_t prompt_logprobs_done = 0;
  std::unique_ptr<Verification> verification;  // of a request with a claim

  RequestState();
  ~RequestState();

  // What the forward pass reads: the prompt, and of a claim all output tokens but the last.
  std::vector<int32_t> InputTokens() const;
  int64_t num_input_tokens() const;
  bool wants_prompt_logprobs() const { return request.sampling.prompt_logprobs >= 0; }
};

}  // namespace verbatim::engine

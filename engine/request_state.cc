// What the engine remembers of a request in flight and of each of its samples.
#include "engine/request_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/verification.h"

namespace verbatim::engine {
namespace {

bool UsesPenalties(const SamplingOptions& s) {
  return s.presence_penalty != 0 || s.frequency_penalty != 0 || s.repetition_penalty != 1;
}

bool Contains(absl::Span<const int32_t> ids, int32_t token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

}  // namespace

SampleState::SampleState(RequestState& request, scheduler::SequenceId id, int32_t index,
                         const model::Tokenizer& tokenizer)
    : request_(request),
      id_(id),
      index_(index),
      tokenizer_(tokenizer),
      detokenizer_(tokenizer, request.request.sampling.skip_special_tokens),
      stop_matcher_(request.request.sampling.stop) {
  const SamplingOptions& s = request.request.sampling;
  if (s.min_tokens > 0) {
    banned_ = s.stop_token_ids;
    if (!s.ignore_eos) {
      banned_.insert(banned_.end(), tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
    }
    std::sort(banned_.begin(), banned_.end());
    banned_.erase(std::unique(banned_.begin(), banned_.end()), banned_.end());
  }
  if (UsesPenalties(s)) {
    for (int32_t token : request.request.prompt) {
      Count(token);
      ++counts_[count_index_[token]].in_prompt;
    }
  }
}

void SampleState::Count(int32_t token) {
  if (count_index_.emplace(token, counts_.size()).second) counts_.push_back({.token = token});
}

int32_t SampleState::TokenAt(int64_t position) const {
  const std::vector<int32_t>& prompt = request_.request.prompt;
  const int64_t prompt_tokens = static_cast<int64_t>(prompt.size());
  if (position < prompt_tokens) return prompt[position];
  const AnswerClaim* claim = request_.request.claim.get();
  return (claim != nullptr ? claim->output : output_)[position - prompt_tokens];
}

int64_t SampleState::num_tokens() const {
  return static_cast<int64_t>(request_.request.prompt.size() + output_.size());
}

kernels::SamplingRow SampleState::NextRow() {
  const SamplingOptions& s = request_.request.sampling;
  kernels::SamplingRow row;
  row.temperature = s.temperature;
  row.top_k = std::max(s.top_k, 0);
  row.top_p = s.top_p;
  row.min_p = s.min_p;
  row.presence_penalty = s.presence_penalty;
  row.frequency_penalty = s.frequency_penalty;
  row.repetition_penalty = s.repetition_penalty;
  row.logit_bias = s.logit_bias;
  row.counts = counts_;
  if (num_output_tokens() < s.min_tokens) row.banned = banned_;
  row.seed = request_.seed;
  row.position = static_cast<uint32_t>(num_tokens());
  row.sample_index = static_cast<uint32_t>(index_);
  row.num_logprobs = s.logprobs;
  return row;
}

bool SampleState::IsStopToken(int32_t token) const {
  const SamplingOptions& s = request_.request.sampling;
  return Contains(s.stop_token_ids, token) ||
         (!s.ignore_eos && Contains(tokenizer_.eos_ids(), token));
}

void SampleState::Advance(int32_t token) {
  output_.push_back(token);
  if (UsesPenalties(request_.request.sampling)) {
    Count(token);
    ++counts_[count_index_[token]].in_output;
  }
}

DeltaEvent SampleState::TakeToken(const kernels::SampledRow& sampled,
                                  std::optional<FinishedEvent>& finished) {
  const SamplingOptions& s = request_.request.sampling;
  Advance(sampled.token);
  hash_.Add(sampled.fingerprint);
  if (request_.request.keep_record || request_.request.trace) {
    rows_.push_back(sampled.fingerprint);
  }
  min_top_margin_ = std::min(min_top_margin_, sampled.top_margin);

  DeltaEvent delta;
  delta.index = index_;
  delta.tokens.push_back(sampled.token);
  if (s.logprobs >= 0) {
    delta.logprobs.push_back({sampled.chosen, sampled.top, sampled.fingerprint});
  }
  if (request_.request.return_row_fingerprints) {
    delta.row_fingerprints.push_back(sampled.fingerprint);
  }
  if (request_.request.return_top_margins) delta.top_margins.push_back(sampled.top_margin);

  FinishedEvent end;
  bool over = false, text_cut = false;  // text_cut: a stop string ended the text
  const bool may_stop = num_output_tokens() >= s.min_tokens;
  if (may_stop && IsStopToken(sampled.token)) {
    over = true;
    end.stop_reason = Contains(s.stop_token_ids, sampled.token) ? absl::StrCat(sampled.token) : "";
    if (s.include_stop_str_in_output) delta.text = detokenizer_.Push(sampled.token);
  } else {
    const std::string piece = detokenizer_.Push(sampled.token);
    if (may_stop) {
      StopMatcher::Result text = stop_matcher_.Push(piece, s.include_stop_str_in_output);
      delta.text = std::move(text.text);
      over = text_cut = text.matched.has_value();
      if (over) end.stop_reason = *text.matched;
    } else {
      delta.text = piece;
    }
    if (!over && num_output_tokens() >= request_.max_output_tokens) {
      over = true;
      end.reason = FinishReason::kLength;
    }
  }
  if (!over) return delta;
  if (!text_cut) {
    // What was held back as a possible stop string, and an unfinished character, belong to the
    // text.
    const std::string held = stop_matcher_.Flush();
    delta.text = held + delta.text + detokenizer_.Flush();
  }
  end.index = index_;
  end.output_tokens = num_output_tokens();
  end.logits_sha256 = hash_.Hex();
  end.min_top_margin = min_top_margin_;
  if (request_.request.keep_record) {
    auto record = std::make_shared<AnswerRecord>();
    record->seed = request_.seed;
    record->max_output_tokens = request_.max_output_tokens;
    record->output = output_;
    record->rows = rows_;
    end.record = std::move(record);
  }
  finished = std::move(end);
  return delta;
}

RequestState::RequestState() = default;
RequestState::~RequestState() = default;

std::vector<int32_t> RequestState::InputTokens() const {
  std::vector<int32_t> tokens = request.prompt;
  if (request.claim != nullptr) {
    tokens.insert(tokens.end(), request.claim->output.begin(), request.claim->output.end() - 1);
  }
  return tokens;
}

int64_t RequestState::num_input_tokens() const {
  const size_t claimed = request.claim == nullptr ? 0 : request.claim->output.size() - 1;
  return static_cast<int64_t>(request.prompt.size() + claimed);
}

}  // namespace verbatim::engine

// What a request answered, bit by bit, and how two answers to the same request compare.
#include "conformance/answer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace verbatim::conformance {
namespace {

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

std::string Text(const numerics::RowFingerprint& row) {
  return absl::StrFormat("%016x%016x", row.a, row.b);
}

std::string Text(const kernels::TokenLogprob& entry) {
  return absl::StrFormat("token %d, rank %d, bits %08x", entry.token, entry.rank,
                         Bits(entry.logprob));
}

std::string Ending(const SampleAnswer& sample) {
  return absl::StrCat(sample.tokens.size(), " tokens, reason ", static_cast<int>(sample.reason));
}

bool Same(const kernels::TokenLogprob& x, const kernels::TokenLogprob& y) {
  return x.token == y.token && x.rank == y.rank && Bits(x.logprob) == Bits(y.logprob);
}

// Counts into a Comparison and remembers the first difference.
class Counter {
 public:
  explicit Counter(Comparison* out) : out_(out) {}

  void Differ(std::string what, std::string where, int64_t index, std::string reference,
              std::string observed) {
    if (out_->first.has_value()) return;
    out_->first = FirstDifference{.what = std::move(what),
                                  .where = std::move(where),
                                  .index = index,
                                  .reference = std::move(reference),
                                  .observed = std::move(observed)};
  }
  void Row(const char* where, int64_t index, const numerics::RowFingerprint& reference,
           const numerics::RowFingerprint& observed) {
    ++out_->rows_compared;
    if (reference == observed) return;
    ++out_->rows_differing;
    Differ("logits", where, index, Text(reference), Text(observed));
  }
  void Logprobs(const char* where, int64_t index, const engine::PositionLogprobs& reference,
                const engine::PositionLogprobs& observed) {
    const auto entry = [&](const kernels::TokenLogprob& x, const kernels::TokenLogprob& y) {
      ++out_->logprobs_compared;
      if (Same(x, y)) return;
      ++out_->logprobs_differing;
      Differ("log-probability", where, index, Text(x), Text(y));
    };
    entry(reference.chosen, observed.chosen);
    for (size_t i = 0; i < std::min(reference.top.size(), observed.top.size()); ++i) {
      entry(reference.top[i], observed.top[i]);
    }
  }

 private:
  Comparison* out_;
};

void CompareOutputs(const SampleAnswer& reference, const SampleAnswer& observed, Counter& counter,
                    Comparison& out) {
  const size_t common = std::min(reference.tokens.size(), observed.tokens.size());
  const bool has_rows = !reference.rows.empty() && !observed.rows.empty();
  if (!has_rows) {
    out.rows_compared += static_cast<int64_t>(common);
    if (reference.logits_sha256 != observed.logits_sha256) {
      ++out.rows_differing;
      counter.Differ("logits", "output", 0, absl::StrCat("chain ", reference.logits_sha256),
                     absl::StrCat("chain ", observed.logits_sha256));
    }
  }
  for (size_t i = 0; i < common; ++i) {
    if (has_rows) {
      counter.Row("output", static_cast<int64_t>(i), reference.rows[i], observed.rows[i]);
    }
    ++out.tokens_compared;
    if (reference.tokens[i] != observed.tokens[i]) {
      ++out.tokens_differing;
      ++out.answers_with_other_tokens;
      counter.Differ("token", "output", static_cast<int64_t>(i), absl::StrCat(reference.tokens[i]),
                     absl::StrCat(observed.tokens[i]));
      return;
    }
    if (i < reference.logprobs.size() && i < observed.logprobs.size()) {
      counter.Logprobs("output", static_cast<int64_t>(i), reference.logprobs[i],
                       observed.logprobs[i]);
    }
  }
  if (reference.tokens.size() != observed.tokens.size() || reference.reason != observed.reason) {
    ++out.other_differing;
    counter.Differ("finish", "output", static_cast<int64_t>(common), Ending(reference),
                   Ending(observed));
  } else if (reference.logits_sha256 != observed.logits_sha256 && !out.first.has_value()) {
    ++out.other_differing;  // the fingerprints agreed, so the chain must
    counter.Differ("finish", "output", static_cast<int64_t>(common), reference.logits_sha256,
                   observed.logits_sha256);
  }
}

}  // namespace

void RecordingSink::OnPromptLogprobs(std::vector<engine::PositionLogprobs> positions) {
  answer_->prompt = std::move(positions);
}

SampleAnswer& RecordingSink::Sample(int32_t index) {
  const size_t needed = static_cast<size_t>(index) + 1;
  if (answer_->samples.size() < needed) answer_->samples.resize(needed);
  return answer_->samples[static_cast<size_t>(index)];
}

void RecordingSink::OnDelta(engine::DeltaEvent event) {
  SampleAnswer& sample = Sample(event.index);
  sample.tokens.insert(sample.tokens.end(), event.tokens.begin(), event.tokens.end());
  sample.rows.insert(sample.rows.end(), event.row_fingerprints.begin(),
                     event.row_fingerprints.end());
  for (engine::PositionLogprobs& position : event.logprobs) {
    sample.logprobs.push_back(std::move(position));
  }
  tokens_ += static_cast<int64_t>(event.tokens.size());
  if (on_token_) on_token_(tokens_);
}

void RecordingSink::OnFinished(engine::FinishedEvent event) {
  SampleAnswer& sample = Sample(event.index);
  sample.reason = event.reason;
  sample.logits_sha256 = std::move(event.logits_sha256);
}

void RecordingSink::OnDone(absl::Status status, engine::UsageEvent usage) {
  answer_->status = std::move(status);
  answer_->usage = usage;
  if (on_done_) on_done_();
}

void Comparison::Add(const Comparison& other) {
  requests += other.requests;
  requests_differing += other.requests_differing;
  answers_with_other_tokens += other.answers_with_other_tokens;
  tokens_compared += other.tokens_compared;
  tokens_differing += other.tokens_differing;
  rows_compared += other.rows_compared;
  rows_differing += other.rows_differing;
  logprobs_compared += other.logprobs_compared;
  logprobs_differing += other.logprobs_differing;
  other_differing += other.other_differing;
  if (!first.has_value()) first = other.first;
}

Comparison CompareAnswers(const Answer& reference, int reference_sample, const Answer& observed,
                          int observed_sample) {
  Comparison out;
  Counter counter(&out);
  out.requests = 1;
  const auto index = [](int sample) { return static_cast<size_t>(sample); };
  if (reference.status.code() != observed.status.code() ||
      reference.samples.size() <= index(reference_sample) ||
      observed.samples.size() <= index(observed_sample)) {
    ++out.other_differing;
    counter.Differ("status", "output", 0, reference.status.ToString(), observed.status.ToString());
  } else {
    if (reference_sample == 0 && observed_sample == 0) {
      // Entry 0 is of the first prompt token, which no row precedes.
      for (size_t i = 1; i < std::min(reference.prompt.size(), observed.prompt.size()); ++i) {
        const int64_t row = static_cast<int64_t>(i) - 1;
        counter.Row("prompt", row, reference.prompt[i].row_fingerprint,
                    observed.prompt[i].row_fingerprint);
        counter.Logprobs("prompt", row, reference.prompt[i], observed.prompt[i]);
      }
    }
    CompareOutputs(reference.samples[index(reference_sample)],
                   observed.samples[index(observed_sample)], counter, out);
  }
  out.requests_differing = out.mismatches() > 0 ? 1 : 0;
  return out;
}

}  // namespace verbatim::conformance

// Comparison of a claimed answer with its recomputation, row by row.
#include "engine/verification.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::engine {
namespace {

std::string NameOf(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

std::string Hex(const numerics::RowFingerprint& row) {
  return absl::StrCat(absl::Hex(row.a, absl::kZeroPad16), absl::Hex(row.b, absl::kZeroPad16));
}

}  // namespace

Verification::Verification(RequestState& request, const model::Tokenizer& tokenizer)
    : claim_(*request.request.claim),
      prompt_tokens_(static_cast<int64_t>(request.request.prompt.size())),
      ahead_(request, /*id=*/0, claim_.sample_index, tokenizer) {}

bool Verification::NeedsRow(int64_t position) const {
  return position >= prompt_tokens_ - 1 + judged_;
}

kernels::SamplingRow Verification::NextRow(std::vector<kernels::TokenCount>& counts) {
  kernels::SamplingRow row = ahead_.NextRow();
  row.num_logprobs = -1;
  counts.assign(row.counts.begin(), row.counts.end());
  row.counts = counts;
  ahead_.Advance(claim_.output[handed_out_++]);
  return row;
}

std::optional<VerificationEvent> Verification::Take(const kernels::SampledRow& sampled,
                                                    SampleState& sample) {
  bool over = false;
  VerificationEvent event;
  event.difference = Judge(sampled, sample, &over);
  event.rows_checked = ++judged_;
  if (!over && !event.difference.has_value()) return std::nullopt;
  return event;
}

std::optional<ClaimDifference> Verification::Judge(const kernels::SampledRow& sampled,
                                                   SampleState& sample, bool* over) {
  const int64_t index = judged_;
  const bool is_last = index + 1 == static_cast<int64_t>(claim_.output.size());
  if (!(sampled.fingerprint == claim_.rows[index])) {
    return ClaimDifference{"row_fingerprints", index, Hex(claim_.rows[index]),
                           Hex(sampled.fingerprint)};
  }
  if (sampled.token != claim_.output[index]) {
    return ClaimDifference{"output_token_ids", index, absl::StrCat(claim_.output[index]),
                           sampled.token < 0 ? "none can be drawn" : absl::StrCat(sampled.token)};
  }
  std::optional<FinishedEvent> finished;
  sample.TakeToken(sampled, finished);
  if (finished.has_value() && !is_last) {
    return ClaimDifference{
        "output_token_ids", index + 1, absl::StrCat(claim_.output[index + 1]),
        absl::StrCat("the answer ends before it (", NameOf(finished->reason), ")")};
  }
  if (!is_last) return std::nullopt;
  *over = true;
  if (!finished.has_value()) {
    return ClaimDifference{"finish_reason", index, NameOf(claim_.reason),
                           "the answer does not end here"};
  }
  if (finished->reason != claim_.reason) {
    return ClaimDifference{"finish_reason", index, NameOf(claim_.reason), NameOf(finished->reason)};
  }
  if (finished->stop_reason != claim_.stop_reason) {
    return ClaimDifference{"stop_reason", index, claim_.stop_reason, finished->stop_reason};
  }
  return std::nullopt;
}

}  // namespace verbatim::engine

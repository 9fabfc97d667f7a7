// Recomputes an answer that is claimed: the same rows, the same draws, the same end.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/generation.h"
#include "engine/request_state.h"
#include "kernels/ops/sampling.h"
#include "model/tokenizer.h"

namespace verbatim::engine {

// The claim of one request on its way through the engine. Its sequence is prompt and claimed output
// as one prompt, so a step may bring many rows; each is sampled as when the token was generated, on
// the condition that the claimed tokens before it are right. They are, when it is reached: rows are
// judged in order, and the first that differs ends the verification.
class Verification {
 public:
  // `request`, which has a claim, and `tokenizer` must outlive it.
  Verification(RequestState& request, const model::Tokenizer& tokenizer);

  // Whether the logits at `position` were asked for and not judged yet.
  bool NeedsRow(int64_t position) const;

  // The sampling row of the next output token; `counts` gets what it points to. Called once for
  // each row that NeedsRow, in ascending order, and Take as often.
  kernels::SamplingRow NextRow(std::vector<kernels::TokenCount>& counts);

  // Judges the next row, whose values are finite. `sample` keeps the stop rules' state. The result
  // ends the verification.
  std::optional<VerificationEvent> Take(const kernels::SampledRow& sampled, SampleState& sample);

 private:
  std::optional<ClaimDifference> Judge(const kernels::SampledRow& sampled, SampleState& sample,
                                       bool* over);

  const AnswerClaim& claim_;
  const int64_t prompt_tokens_;
  SampleState ahead_;       // has taken the claimed tokens of every row handed out
  int64_t handed_out_ = 0;  // rows
  int64_t judged_ = 0;      // rows, all as claimed
};

}  // namespace verbatim::engine

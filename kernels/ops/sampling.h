// Logit processing, log-probabilities and sampling of one token per row.
//
// Order of processors: logit bias, penalties (repetition, then frequency and presence),
// temperature, top-k, top-p, min-p. Sampling is Gumbel-max with Philox4x32-10 keyed by the
// request's seed and counted by (token / 4, position, sample index, 0), word token % 4. temperature
// 0, and anything below kMinTemperature, is argmax over the processed logits. Sums over the
// vocabulary (softmax denominators, top-p mass) are integer sums of floor(exp(x − max) · 2^40),
// which have no order. Log-probabilities are those of the raw logits, before any processor, as
// other servers report them by default. See docs/numerics.md.
//
// Tokens are ordered by (logit descending, id ascending), −0 equal to +0; every choice follows it:
//   banned   the logit becomes −inf before anything else
//   bias     l + bias
//   penalty  l > 0 ? l / repetition : l · repetition; then l − count · frequency (a multiplication
//            and a subtraction); then l − presence, for the tokens they apply to
//   temp.    z = l / temperature
//   top-k    the first k tokens
//   top-p    of those left: the shortest prefix whose integer weights floor(exp(z − max z) · 2^40)
//            sum to at least ceil(top_p · total), computed exactly; top_p = 1 keeps all
//   min-p    of those left: exp(z − max z) >= min_p
// A logit of −inf is an impossible token: it is never drawn. When no token is possible (all banned
// or −inf) the row's result has token −1 with finite = true, and its other fields are set except
// `chosen`. NaN or +inf in the raw logits, or after temperature, gives finite = false for that row
// alone.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/numerics/row_fingerprint.h"

namespace verbatim::kernels {

// Lower temperatures act as 0: dividing by them would overflow or leave nothing to chance.
inline constexpr float kMinTemperature = 1e-5f;

struct TokenCount {
  int32_t token = 0;
  int32_t in_prompt = 0;  // occurrences in the prompt
  int32_t in_output = 0;  // occurrences in the tokens generated so far
};

// One row of logits and what to do with it.
struct SamplingRow {
  float temperature = 1.0f;         // below kMinTemperature: greedy
  int32_t top_k = 0;                // 0 = off
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float presence_penalty = 0.0f;    // on tokens of the output
  float frequency_penalty = 0.0f;   // on tokens of the output, times their count
  float repetition_penalty = 1.0f;  // on tokens of prompt and output: l > 0 ? l / r : l · r
  absl::Span<const std::pair<int32_t, float>> logit_bias;  // distinct token ids in range
  absl::Span<const TokenCount> counts;  // distinct tokens; needed only with a penalty in use
  absl::Span<const int32_t>
      banned;  // tokens that may not be drawn now (EOS and stop ids before min_tokens)
  uint64_t seed = 0;
  uint32_t position = 0;  // absolute position the drawn token will have in the sequence
  uint32_t sample_index = 0;
  int32_t num_logprobs = -1;  // -1: none; 0: of the drawn token; n: also the n most probable
  // >= 0: do not draw, report on this token instead (prompt log-probabilities, verification).
  int32_t forced_token = -1;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  int32_t rank = 0;  // 1 = most probable; ties count the lower id first
};

struct SampledRow {
  int32_t token = -1;  // −1: not finite, or no token is possible
  bool finite = true;  // false: the row holds a NaN or +Inf; token is -1 and nothing else is set
  numerics::RowFingerprint fingerprint;  // of the raw logits' bits
  // Raw logit of the best token minus the second best; +inf for a vocabulary of one or when only
  // one logit is above −inf, 0 when none is.
  float top_margin = 0;
  TokenLogprob chosen;            // set when num_logprobs >= 0
  std::vector<TokenLogprob> top;  // min(num_logprobs, vocab) entries in rank order
};

struct SamplingParams {
  const float* logits = nullptr;  // [rows, vocab] raw fp32 logits, row stride `stride` elements
  int64_t stride = 0;
  int64_t vocab = 0;
  absl::Span<const SamplingRow> rows;
  absl::Span<SampledRow> results;  // same length as rows
};

}  // namespace verbatim::kernels

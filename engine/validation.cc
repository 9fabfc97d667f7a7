// Checks of a generation request that need no work: numbers, token ids and lengths against the
// server's limits.
#include "engine/validation.h"

#include <cmath>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::engine {
namespace {

absl::Status Bad(std::string_view field, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(field), ": ", what));
}

// Closed interval unless `open_low`.
absl::Status InRange(std::string_view field, float value, float low, float high,
                     bool open_low = false) {
  if (std::isfinite(value) && (open_low ? value > low : value >= low) && value <= high) {
    return absl::OkStatus();
  }
  return Bad(field, absl::StrCat(value, " is not in ", open_low ? "(" : "[", low, ", ", high, "]"));
}

absl::Status CheckToken(std::string_view field, int64_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return absl::OkStatus();
  return Bad(field, absl::StrCat("token id ", id, " is not in [0, ", vocab_size, ")"));
}

absl::Status CheckNumbers(const SamplingOptions& s) {
  absl::Status status = InRange("sampling.temperature", s.temperature, 0.0f, 100.0f);
  if (s.temperature > 0 && s.temperature < 1e-4f) {
    status.Update(
        Bad("sampling.temperature",
            absl::StrCat(s.temperature, " is too small: use 0 for greedy, or at least 1e-4")));
  }
  if (s.top_k < -1) status.Update(Bad("sampling.top_k", absl::StrCat(s.top_k, " is less than -1")));
  status.Update(InRange("sampling.top_p", s.top_p, 0.0f, 1.0f, /*open_low=*/true));
  status.Update(InRange("sampling.min_p", s.min_p, 0.0f, 1.0f));
  status.Update(InRange("sampling.presence_penalty", s.presence_penalty, -2.0f, 2.0f));
  status.Update(InRange("sampling.frequency_penalty", s.frequency_penalty, -2.0f, 2.0f));
  status.Update(InRange("sampling.repetition_penalty", s.repetition_penalty, 0.0f, 100.0f,
                        /*open_low=*/true));
  return status;
}

absl::Status CheckLists(const SamplingOptions& s, const RequestLimits& limits) {
  if (static_cast<int64_t>(s.logit_bias.size()) > limits.max_logit_bias) {
    return Bad("sampling.logit_bias",
               absl::StrCat(s.logit_bias.size(), " entries, at most ", limits.max_logit_bias));
  }
  std::set<int32_t> biased;
  for (const auto& [token, bias] : s.logit_bias) {
    absl::Status status = CheckToken("sampling.logit_bias", token, limits.vocab_size);
    if (!status.ok()) return status;
    if (!biased.insert(token).second) {
      return Bad("sampling.logit_bias", absl::StrCat("token id ", token, " appears twice"));
    }
    status = InRange(absl::StrCat("sampling.logit_bias[", token, "]"), bias, -100.0f, 100.0f);
    if (!status.ok()) return status;
  }
  if (static_cast<int64_t>(s.stop.size()) > limits.max_stop_strings) {
    return Bad("sampling.stop",
               absl::StrCat(s.stop.size(), " strings, at most ", limits.max_stop_strings));
  }
  for (size_t i = 0; i < s.stop.size(); ++i) {
    if (s.stop[i].empty()) return Bad(absl::StrCat("sampling.stop[", i, "]"), "is empty");
    if (static_cast<int64_t>(s.stop[i].size()) > limits.max_stop_bytes) {
      return Bad(absl::StrCat("sampling.stop[", i, "]"),
                 absl::StrCat(s.stop[i].size(), " bytes, at most ", limits.max_stop_bytes));
    }
  }
  if (static_cast<int64_t>(s.stop_token_ids.size()) > limits.max_stop_strings) {
    return Bad("sampling.stop_token_ids",
               absl::StrCat(s.stop_token_ids.size(), " ids, at most ", limits.max_stop_strings));
  }
  for (size_t i = 0; i < s.stop_token_ids.size(); ++i) {
    absl::Status status = CheckToken(absl::StrCat("sampling.stop_token_ids[", i, "]"),
                                     s.stop_token_ids[i], limits.vocab_size);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckCounts(const SamplingOptions& s, const RequestLimits& limits) {
  if (s.n < 1 || s.n > limits.max_n) {
    return Bad("sampling.n", absl::StrCat(s.n, " is not in [1, ", limits.max_n, "]"));
  }
  for (const auto& [field, value] :
       {std::pair<std::string_view, int32_t>{"sampling.logprobs", s.logprobs},
        {"sampling.prompt_logprobs", s.prompt_logprobs}}) {
    if (value < -1 || value > limits.max_logprobs) {
      return Bad(field, absl::StrCat(value, " is not in [0, ", limits.max_logprobs, "]"));
    }
  }
  if (s.max_tokens.has_value() && *s.max_tokens < 1) {
    return Bad("sampling.max_tokens", absl::StrCat(*s.max_tokens, " is less than 1"));
  }
  if (s.min_tokens < 0) {
    return Bad("sampling.min_tokens", absl::StrCat(s.min_tokens, " is less than 0"));
  }
  return absl::OkStatus();
}

absl::Status CheckPages(std::string_view field, int64_t prompt, int64_t output,
                        const RequestLimits& limits) {
  const int64_t pages = (prompt + output + limits.page_tokens - 1) / limits.page_tokens;
  if (pages <= limits.num_pages) return absl::OkStatus();
  return Bad(field, absl::StrCat(prompt, " prompt and ", output, " output tokens need ", pages,
                                 " KV pages; the server has ", limits.num_pages));
}

absl::Status CheckClaim(const GenerationRequest& request, const RequestLimits& limits) {
  const AnswerClaim& claim = *request.claim;
  const SamplingOptions& s = request.sampling;
  if (!kernels::IsStrong(request.policy)) {
    return Bad("policy", "throughput promises nothing that could be verified");
  }
  if (claim.output.empty()) return Bad("output_token_ids", "is empty");
  for (size_t i = 0; i < claim.output.size(); ++i) {
    absl::Status status =
        CheckToken(absl::StrCat("output_token_ids[", i, "]"), claim.output[i], limits.vocab_size);
    if (!status.ok()) return status;
  }
  if (claim.rows.size() != claim.output.size()) {
    return Bad("row_fingerprints",
               absl::StrCat(claim.rows.size(), " for ", claim.output.size(), " output tokens"));
  }
  if (claim.sample_index < 0) {
    return Bad("sample_index", absl::StrCat(claim.sample_index, " is less than 0"));
  }
  if (s.n != 1) return Bad("sampling.n", absl::StrCat(s.n, ": a claim is one sample"));
  if (!s.seed.has_value()) return Bad("seed", "is missing");
  if (!s.max_tokens.has_value()) return Bad("sampling.max_tokens", "is missing");
  if (s.min_tokens > *s.max_tokens) {
    return Bad("sampling.min_tokens",
               absl::StrCat(s.min_tokens, " is more than max_tokens ", *s.max_tokens));
  }
  if (static_cast<int64_t>(claim.output.size()) > *s.max_tokens) {
    return Bad("output_token_ids", absl::StrCat(claim.output.size(),
                                                " tokens are more than "
                                                "max_tokens ",
                                                *s.max_tokens));
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const GenerationRequest& request, const RequestLimits& limits) {
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt == 0) return Bad("prompt", "is empty");
  for (int64_t i = 0; i < prompt; ++i) {
    absl::Status status =
        CheckToken(absl::StrCat("prompt[", i, "]"), request.prompt[i], limits.vocab_size);
    if (!status.ok()) return status;
  }
  if (prompt >= limits.max_model_len) {
    return Bad("prompt",
               absl::StrCat(prompt, " tokens leave no room for output: the context holds ",
                            limits.max_model_len));
  }
  // A claim is as long as it is, whatever it was allowed.
  const bool is_claim = request.claim != nullptr;
  const int64_t output = is_claim ? static_cast<int64_t>(request.claim->output.size())
                                  : MaxOutputTokens(request, limits);
  if (output > limits.max_model_len - prompt) {
    return Bad(is_claim ? "output_token_ids" : "sampling.max_tokens",
               absl::StrCat(output, " with a prompt of ", prompt, " tokens exceeds the context of ",
                            limits.max_model_len));
  }
  if (is_claim) {
    absl::Status status = CheckClaim(request, limits);
    status.Update(CheckPages("output_token_ids", prompt, output, limits));
    return status;
  }
  if (request.sampling.min_tokens > output) {
    return Bad("sampling.min_tokens",
               absl::StrCat(request.sampling.min_tokens, " is more than the output may have (",
                            output, ")"));
  }
  return CheckPages(request.sampling.max_tokens.has_value() ? "sampling.max_tokens" : "prompt",
                    prompt, output, limits);
}

}  // namespace

int64_t MaxOutputTokens(const GenerationRequest& request, const RequestLimits& limits) {
  return request.sampling.max_tokens.value_or(limits.max_model_len -
                                              static_cast<int64_t>(request.prompt.size()));
}

absl::Status ValidateRequest(const GenerationRequest& request, const RequestLimits& limits) {
  absl::Status status = CheckNumbers(request.sampling);
  status.Update(CheckLists(request.sampling, limits));
  status.Update(CheckCounts(request.sampling, limits));
  status.Update(CheckLengths(request, limits));
  return status;
}

}  // namespace verbatim::engine

// Checks of a generation request that need no work: numbers, token ids and lengths against the
// server's limits.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "engine/generation.h"

namespace verbatim::engine {

struct RequestLimits {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;  // prompt + output, tokens
  int64_t page_tokens = 0;
  int64_t num_pages = 0;
  int32_t max_logprobs = 0;
  int32_t max_n = 0;
  int32_t max_stop_strings = 64;
  int32_t max_stop_bytes = 1024;  // of one stop string
  int32_t max_logit_bias = 1024;
};

// INVALID_ARGUMENT whose message begins with the field's name as on the wire ("sampling.top_p: …").
absl::Status ValidateRequest(const GenerationRequest& request, const RequestLimits& limits);

// Output tokens the request may produce: max_tokens, or what the context leaves.
int64_t MaxOutputTokens(const GenerationRequest& request, const RequestLimits& limits);

}  // namespace verbatim::engine

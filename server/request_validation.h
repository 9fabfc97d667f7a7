// Everything about a request that can be checked before any work is done for it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/generation.h"
#include "kernels/ops/policy.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::server {

// What a request is checked against.
struct RequestLimits {
  std::string served_model_name;
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;  // tokens
  int32_t max_logprobs = 20;
  int32_t max_n = 64;
  int64_t max_prompt_text_bytes = 1 << 20;
  kernels::Policy default_policy = kernels::Policy::kThroughput;
  std::optional<uint64_t> default_seed;  // of requests that bring none
  bool receipts = true;                  // may be asked for
};

inline constexpr int kMaxStopStrings = 64;
inline constexpr int kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 64;
inline constexpr int kMaxLogitBiases = 1024;
inline constexpr int kMaxChatMessages = 4096;
inline constexpr int kMaxRequestIdBytes = 128;
inline constexpr int kMaxCacheSaltBytes = 1024;

// Unless it says otherwise, an error is INVALID_ARGUMENT, its message beginning with the path of
// the field in the request, as in "sampling.top_p: 1.5 is not in (0, 1]".

absl::Status ValidateModelName(const std::string& model, const RequestLimits& limits);

// The prompt may be empty in the result: text and chat are not tokenised here. Checks everything
// else, token ids included. FAILED_PRECONDITION for a receipt that cannot be given.
absl::StatusOr<engine::GenerationRequest> ConvertGenerateRequest(const v1::GenerateRequest& request,
                                                                 const RequestLimits& limits);

// The last checks, when the prompt's length is known; `field` names where the prompt came from.
absl::Status ValidatePromptLength(const engine::GenerationRequest& request, std::string_view field,
                                  const RequestLimits& limits);

// Ids of a TokenIds message or another list, each within the vocabulary.
absl::StatusOr<std::vector<int32_t>> ConvertTokenIds(
    const google::protobuf::RepeatedField<int64_t>& ids, std::string_view field,
    int64_t vocab_size);

// Text or chat to tokens; may take long. FAILED_PRECONDITION for chat with a model whose template
// is unknown.
absl::StatusOr<std::vector<int32_t>> TokenizeText(const std::string& text, bool add_special_tokens,
                                                  const model::Tokenizer& tokenizer);
absl::StatusOr<std::vector<int32_t>> TokenizeChat(const v1::ChatMessages& chat,
                                                  const model::ChatTemplate& chat_template,
                                                  const model::Tokenizer& tokenizer);

// Checks of text and chat that need no tokenizer.
absl::Status ValidateText(const std::string& text, int64_t max_bytes);
absl::Status ValidateChat(const v1::ChatMessages& chat, int64_t max_bytes);

}  // namespace verbatim::server

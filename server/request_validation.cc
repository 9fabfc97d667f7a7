// Range checks of every request field, and their conversion to the engine's types.
#include "server/request_validation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"

namespace verbatim::server {
namespace {

// Below this a finite logit divided by the temperature could overflow; users who want less want 0.
constexpr float kMinTemperature = 1e-4f;
constexpr float kMaxTemperature = 100.0f;

absl::Status Invalid(std::string_view field, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(field), ": ", std::string(what)));
}

// The beginning of user text, for a message that must fit into a gRPC status.
std::string Excerpt(const std::string& text) {
  return text.size() <= 64 ? text : absl::StrCat(text.substr(0, 64), "…");
}

// `inside` is false for NaN when written as a conjunction of comparisons.
absl::Status CheckFloat(std::string_view field, float value, bool inside, std::string_view range) {
  if (inside) return absl::OkStatus();
  return Invalid(field, absl::StrFormat("%g is not %s", value, std::string(range)));
}

absl::Status CheckInt(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Invalid(field, absl::StrFormat("%d is not in [%d, %d]", value, low, high));
}

absl::Status CheckTokenId(std::string_view field, int64_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return absl::OkStatus();
  return Invalid(field, absl::StrFormat("token id %d is not in [0, %d), the model's vocabulary", id,
                                        vocab_size));
}

absl::Status ConvertRanges(const v1::SamplingParams& in, const RequestLimits& limits,
                           engine::SamplingOptions* out) {
  const auto float_in = [](float* target, bool present, float value, std::string_view field,
                           float low, float high) {
    if (present) *target = value;
    const float x = *target;
    return CheckFloat(field, x, x >= low && x <= high, absl::StrFormat("in [%g, %g]", low, high));
  };
  if (in.has_temperature()) out->temperature = in.temperature();
  const float t = out->temperature;
  if (absl::Status s = CheckFloat(
          "sampling.temperature", t, t == 0 || (t >= kMinTemperature && t <= kMaxTemperature),
          absl::StrFormat("0 (greedy) or in [%g, %g]", kMinTemperature, kMaxTemperature));
      !s.ok()) {
    return s;
  }
  if (in.has_top_k()) {
    if (in.top_k() < -1) {
      return Invalid("sampling.top_k",
                     absl::StrCat(in.top_k(), " is not positive, nor 0 or -1 for off"));
    }
    // As many as there are tokens, or more, filters nothing.
    out->top_k = in.top_k() == -1 || in.top_k() >= limits.vocab_size ? 0 : in.top_k();
  }
  if (in.has_top_p()) out->top_p = in.top_p();
  if (absl::Status s =
          CheckFloat("sampling.top_p", out->top_p, out->top_p > 0 && out->top_p <= 1, "in (0, 1]");
      !s.ok()) {
    return s;
  }
  if (absl::Status s = float_in(&out->min_p, in.has_min_p(), in.min_p(), "sampling.min_p", 0, 1);
      !s.ok()) {
    return s;
  }
  if (absl::Status s = float_in(&out->presence_penalty, in.has_presence_penalty(),
                                in.presence_penalty(), "sampling.presence_penalty", -2, 2);
      !s.ok()) {
    return s;
  }
  if (absl::Status s = float_in(&out->frequency_penalty, in.has_frequency_penalty(),
                                in.frequency_penalty(), "sampling.frequency_penalty", -2, 2);
      !s.ok()) {
    return s;
  }
  if (in.has_repetition_penalty()) out->repetition_penalty = in.repetition_penalty();
  const float r = out->repetition_penalty;
  // Denormals are excluded so that a logit divided by the penalty stays finite.
  return CheckFloat("sampling.repetition_penalty", r, r >= 1e-4f && r <= 100, "in [0.0001, 100]");
}

absl::Status ConvertLists(const v1::SamplingParams& in, const RequestLimits& limits,
                          engine::SamplingOptions* out) {
  if (in.logit_bias_size() > kMaxLogitBiases) {
    return Invalid("sampling.logit_bias",
                   absl::StrCat(in.logit_bias_size(), " entries; at most ", kMaxLogitBiases));
  }
  for (const auto& [id, bias] : in.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    if (absl::Status s = CheckTokenId(field, id, limits.vocab_size); !s.ok()) return s;
    if (absl::Status s = CheckFloat(field, bias, bias >= -100 && bias <= 100, "in [-100, 100]");
        !s.ok()) {
      return s;
    }
    out->logit_bias.emplace_back(static_cast<int32_t>(id), bias);
  }
  std::sort(out->logit_bias.begin(), out->logit_bias.end());  // a map has no order of its own

  if (in.stop_size() > kMaxStopStrings) {
    return Invalid("sampling.stop",
                   absl::StrCat(in.stop_size(), " strings; at most ", kMaxStopStrings));
  }
  for (int i = 0; i < in.stop_size(); ++i) {
    const std::string field = absl::StrCat("sampling.stop[", i, "]");
    if (in.stop(i).empty()) return Invalid(field, "is empty");
    if (in.stop(i).size() > static_cast<size_t>(kMaxStopStringBytes)) {
      return Invalid(field,
                     absl::StrCat(in.stop(i).size(), " bytes; at most ", kMaxStopStringBytes));
    }
    out->stop.push_back(in.stop(i));
  }
  if (in.stop_token_ids_size() > kMaxStopTokenIds) {
    return Invalid("sampling.stop_token_ids",
                   absl::StrCat(in.stop_token_ids_size(), " ids; at most ", kMaxStopTokenIds));
  }
  absl::StatusOr<std::vector<int32_t>> ids =
      ConvertTokenIds(in.stop_token_ids(), "sampling.stop_token_ids", limits.vocab_size);
  if (!ids.ok()) return ids.status();
  out->stop_token_ids = *std::move(ids);
  return absl::OkStatus();
}

absl::Status ConvertCounts(const v1::SamplingParams& in, const RequestLimits& limits,
                           engine::SamplingOptions* out) {
  if (in.has_n()) {
    if (absl::Status s = CheckInt("sampling.n", in.n(), 1, limits.max_n); !s.ok()) return s;
    out->n = static_cast<int32_t>(in.n());
  }
  if (in.has_max_tokens()) {
    if (absl::Status s =
            CheckInt("sampling.max_tokens", in.max_tokens(), 1, limits.max_model_len - 1);
        !s.ok()) {
      return s;
    }
    out->max_tokens = in.max_tokens();
  }
  if (in.has_min_tokens()) {
    const int64_t most = out->max_tokens.value_or(limits.max_model_len - 1);
    if (absl::Status s = CheckInt("sampling.min_tokens", in.min_tokens(), 0, most); !s.ok()) {
      return s;
    }
    out->min_tokens = in.min_tokens();
  }
  if (in.has_logprobs()) {
    if (absl::Status s = CheckInt("sampling.logprobs", in.logprobs(), 0, limits.max_logprobs);
        !s.ok()) {
      return s;
    }
    out->logprobs = in.logprobs();
  }
  if (in.has_prompt_logprobs()) {
    if (absl::Status s =
            CheckInt("sampling.prompt_logprobs", in.prompt_logprobs(), 0, limits.max_logprobs);
        !s.ok()) {
      return s;
    }
    out->prompt_logprobs = in.prompt_logprobs();
  }
  return absl::OkStatus();
}

absl::StatusOr<kernels::Policy> ConvertDeterminism(v1::Determinism value,
                                                   const RequestLimits& limits) {
  switch (value) {
    case v1::DETERMINISM_UNSPECIFIED:
      return limits.default_policy;
    case v1::DETERMINISM_THROUGHPUT:
      return kernels::Policy::kThroughput;
    case v1::DETERMINISM_PINNED:
      return kernels::Policy::kPinned;
    case v1::DETERMINISM_PORTABLE:
      return kernels::Policy::kPortable;
    default:
      return Invalid("determinism", absl::StrCat("unknown value ", static_cast<int>(value)));
  }
}

}  // namespace

absl::Status ValidateModelName(const std::string& model, const RequestLimits& limits) {
  if (model.empty() || model == limits.served_model_name) return absl::OkStatus();
  return Invalid("model",
                 absl::StrCat("'", Excerpt(model), "' is not served here; this server has '",
                              limits.served_model_name, "'"));
}

absl::StatusOr<engine::GenerationRequest> ConvertGenerateRequest(const v1::GenerateRequest& request,
                                                                 const RequestLimits& limits) {
  if (absl::Status s = ValidateModelName(request.model(), limits); !s.ok()) return s;
  engine::GenerationRequest out;
  absl::StatusOr<kernels::Policy> policy = ConvertDeterminism(request.determinism(), limits);
  if (!policy.ok()) return policy.status();
  out.policy = *policy;
  out.return_top_margins = request.return_fragility();

  if (request.return_receipt() && !kernels::IsStrong(out.policy)) {
    return absl::FailedPreconditionError(
        "return_receipt: determinism is throughput, which promises nothing that a receipt could "
        "prove; ask for pinned or portable");
  }
  if (request.return_receipt() && !limits.receipts) {
    return absl::FailedPreconditionError(
        "return_receipt: receipts are turned off on this server (--no-receipts)");
  }
  if (request.cache_salt().size() > static_cast<size_t>(kMaxCacheSaltBytes)) {
    return Invalid("cache_salt", absl::StrCat(request.cache_salt().size(), " bytes; at most ",
                                              kMaxCacheSaltBytes));
  }
  out.cache_salt = request.cache_salt();
  out.read_prefix_cache = !request.disable_prefix_cache();
  if (!v1::TraceLevel_IsValid(request.trace())) {
    return Invalid("trace", absl::StrCat("unknown value ", static_cast<int>(request.trace())));
  }
  out.trace = request.trace() != v1::TRACE_LEVEL_NONE;
  out.trace_layers = request.trace() == v1::TRACE_LEVEL_LAYERS;
  if (request.request_id().size() > static_cast<size_t>(kMaxRequestIdBytes)) {
    return Invalid("request_id", absl::StrCat(request.request_id().size(), " bytes; at most ",
                                              kMaxRequestIdBytes));
  }

  const v1::SamplingParams& sampling = request.sampling();
  if (absl::Status s = ConvertRanges(sampling, limits, &out.sampling); !s.ok()) return s;
  if (absl::Status s = ConvertCounts(sampling, limits, &out.sampling); !s.ok()) return s;
  if (absl::Status s = ConvertLists(sampling, limits, &out.sampling); !s.ok()) return s;
  out.sampling.seed =
      sampling.has_seed() ? std::optional<uint64_t>(sampling.seed()) : limits.default_seed;
  if (sampling.has_ignore_eos()) out.sampling.ignore_eos = sampling.ignore_eos();
  if (sampling.has_skip_special_tokens()) {
    out.sampling.skip_special_tokens = sampling.skip_special_tokens();
  }
  if (sampling.has_include_stop_str_in_output()) {
    out.sampling.include_stop_str_in_output = sampling.include_stop_str_in_output();
  }

  switch (request.prompt_case()) {
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return Invalid("prompt", "one of text, token_ids and chat must be set");
    case v1::GenerateRequest::kText:
      if (absl::Status s = ValidateText(request.text(), limits.max_prompt_text_bytes); !s.ok()) {
        return s;
      }
      break;
    case v1::GenerateRequest::kChat:
      if (absl::Status s = ValidateChat(request.chat(), limits.max_prompt_text_bytes); !s.ok()) {
        return s;
      }
      break;
    case v1::GenerateRequest::kTokenIds: {
      absl::StatusOr<std::vector<int32_t>> ids =
          ConvertTokenIds(request.token_ids().ids(), "token_ids.ids", limits.vocab_size);
      if (!ids.ok()) return ids.status();
      out.prompt = *std::move(ids);
      if (absl::Status s = ValidatePromptLength(out, "token_ids.ids", limits); !s.ok()) return s;
      break;
    }
  }
  return out;
}

absl::Status ValidatePromptLength(const engine::GenerationRequest& request, std::string_view field,
                                  const RequestLimits& limits) {
  const int64_t length = static_cast<int64_t>(request.prompt.size());
  if (length == 0) return Invalid(field, "the prompt has no tokens");
  if (length >= limits.max_model_len) {
    return Invalid(field, absl::StrFormat("%d prompt tokens leave no room to generate within "
                                          "max_model_len %d",
                                          length, limits.max_model_len));
  }
  const int64_t room = limits.max_model_len - length;
  if (request.sampling.max_tokens.value_or(1) > room) {
    return Invalid("sampling.max_tokens",
                   absl::StrFormat("%d with %d prompt tokens exceeds max_model_len %d",
                                   *request.sampling.max_tokens, length, limits.max_model_len));
  }
  if (request.sampling.min_tokens > room) {
    return Invalid("sampling.min_tokens",
                   absl::StrFormat("%d with %d prompt tokens exceeds max_model_len %d",
                                   request.sampling.min_tokens, length, limits.max_model_len));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ConvertTokenIds(
    const google::protobuf::RepeatedField<int64_t>& ids, std::string_view field,
    int64_t vocab_size) {
  std::vector<int32_t> out;
  out.reserve(static_cast<size_t>(ids.size()));
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return CheckTokenId(absl::StrCat(std::string(field), "[", i, "]"), ids[i], vocab_size);
    }
    out.push_back(static_cast<int32_t>(ids[i]));
  }
  return out;
}

absl::Status ValidateText(const std::string& text, int64_t max_bytes) {
  if (text.empty()) return Invalid("text", "is empty");
  if (static_cast<int64_t>(text.size()) > max_bytes) {
    return Invalid("text", absl::StrCat(text.size(), " bytes; at most ", max_bytes));
  }
  return absl::OkStatus();
}

absl::Status ValidateChat(const v1::ChatMessages& chat, int64_t max_bytes) {
  if (chat.messages_size() == 0) return Invalid("chat.messages", "is empty");
  if (chat.messages_size() > kMaxChatMessages) {
    return Invalid("chat.messages",
                   absl::StrCat(chat.messages_size(), " messages; at most ", kMaxChatMessages));
  }
  int64_t bytes = 0;
  for (int i = 0; i < chat.messages_size(); ++i) {
    if (chat.messages(i).role().empty()) {
      return Invalid(absl::StrCat("chat.messages[", i, "].role"), "is empty");
    }
    bytes +=
        static_cast<int64_t>(chat.messages(i).content().size() + chat.messages(i).role().size());
  }
  if (bytes > max_bytes) {
    return Invalid("chat.messages", absl::StrCat(bytes, " bytes; at most ", max_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> TokenizeText(const std::string& text, bool add_special_tokens,
                                                  const model::Tokenizer& tokenizer) {
  model::EncodeOptions options;
  options.add_special_tokens = add_special_tokens;
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, options);
  if (!ids.ok()) {
    return absl::Status(ids.status().code(), absl::StrCat("text: ", ids.status().message()));
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> TokenizeChat(const v1::ChatMessages& chat,
                                                  const model::ChatTemplate& chat_template,
                                                  const model::Tokenizer& tokenizer) {
  std::vector<model::ChatMessage> messages;
  messages.reserve(static_cast<size_t>(chat.messages_size()));
  for (const v1::ChatMessage& message : chat.messages()) {
    messages.push_back({message.role(), message.content()});
  }
  absl::StatusOr<std::string> text = chat_template.Render(messages, tokenizer);
  if (!text.ok()) {
    const bool names_message = absl::StartsWith(text.status().message(), "messages");
    return absl::Status(text.status().code(),
                        absl::StrCat("chat", names_message ? "." : ": ", text.status().message()));
  }
  model::EncodeOptions options;
  options.add_special_tokens = false;  // the template writes them itself
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(*text, options);
  if (!ids.ok()) {
    return absl::Status(ids.status().code(), absl::StrCat("chat: ", ids.status().message()));
  }
  return ids;
}

}  // namespace verbatim::server

// Checks of operations' arguments that do not depend on the backend.
#include "kernels/ops/checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace verbatim::kernels {

absl::Status CheckKvCacheConfig(const KvCacheConfig& config) {
  if (config.num_layers < 1 || config.num_kv_heads < 1 || config.num_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "KV cache: num_layers ", config.num_layers, ", num_kv_heads ", config.num_kv_heads,
        " and num_pages ", config.num_pages, " must be positive"));
  }
  if (config.head_dim < 2 || config.head_dim > 256 || config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("KV cache: head_dim ", config.head_dim,
                                                   " is not an even number from 2 to 256"));
  }
  if (config.page_tokens < 16 || config.page_tokens % 16 != 0 || 256 % config.page_tokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("KV cache: page_tokens ", config.page_tokens,
                                                   " is not one of 16, 32, 64, 128, 256"));
  }
  if (config.dtype != DType::kF32 && config.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat(
        "KV cache: dtype ", std::string(InfoOf(config.dtype).name), " is neither F32 nor BF16"));
  }
  if (config.num_pages > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV cache: num_pages ", config.num_pages, " exceeds ", INT32_MAX));
  }
  return absl::OkStatus();
}

absl::Status CheckSpans(const KvCacheConfig& config, int64_t layer,
                        absl::Span<const SequenceSpan> spans) {
  if (layer < 0 || layer >= config.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " is not in the KV cache"));
  }
  for (size_t i = 0; i < spans.size(); ++i) {
    const SequenceSpan& span = spans[i];
    if (span.first_row < 0 || span.num_rows < 0 || span.first_position < 0) {
      return absl::InvalidArgumentError(absl::StrCat("span ", i, " has a negative field"));
    }
    const int64_t positions = int64_t{span.first_position} + span.num_rows;
    const int64_t needed = (positions + config.page_tokens - 1) / config.page_tokens;
    if (span.num_rows == 0) continue;
    if (span.pages == nullptr || span.num_pages < needed) {
      return absl::InvalidArgumentError(absl::StrCat("span ", i, " has ", span.num_pages,
                                                     " pages, its ", positions, " positions need ",
                                                     needed));
    }
    for (int64_t page = 0; page < needed; ++page) {
      if (span.pages[page] < 0 || span.pages[page] >= config.num_pages) {
        return absl::InvalidArgumentError(
            absl::StrCat("span ", i, " names page ", span.pages[page], " of ", config.num_pages));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDecodeStep(const DecodeStep& step) {
  if (step.cache == nullptr) return absl::InvalidArgumentError("RunDecode: cache is missing");
  const KvCacheConfig& config = step.cache->config();
  if (absl::Status status = CheckSpans(config, 0, step.spans); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("RunDecode: ", std::string(status.message())));
  }
  if (step.num_heads < 1 || step.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("RunDecode: num_heads ", step.num_heads,
                                                   " is no multiple of the cache's ",
                                                   config.num_kv_heads));
  }
  const int64_t sequences = static_cast<int64_t>(step.spans.size());
  if (sequences == 0 || step.rows < sequences || step.rows > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("RunDecode: ", step.rows, " rows for ", sequences, " sequences"));
  }
  for (int64_t i = 0; i < sequences; ++i) {
    const SequenceSpan& span = step.spans[static_cast<size_t>(i)];
    if (span.first_row == i && span.num_rows == 1) continue;
    return absl::InvalidArgumentError(absl::StrCat("RunDecode: span ", i, " has ", span.num_rows,
                                                   " rows from row ", span.first_row));
  }
  return absl::OkStatus();
}

absl::Status CheckAttention(const AttentionParams& params, const KvCacheConfig& config) {
  if (params.num_heads < 1 || params.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("Attention: num_heads ", params.num_heads,
                                                   " is not a multiple of num_kv_heads ",
                                                   config.num_kv_heads));
  }
  const int64_t row_elements = params.num_heads * config.head_dim;
  if (params.q == nullptr || params.y == nullptr || params.q_stride < row_elements ||
      params.y_stride < row_elements) {
    return absl::InvalidArgumentError(
        absl::StrCat("Attention: q_stride ", params.q_stride, " or y_stride ", params.y_stride,
                     " is below a row's ", row_elements, " elements, or q or y is missing"));
  }
  if (absl::Status status = CheckSpans(config, params.layer, params.spans); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("Attention: ", std::string(status.message())));
  }
  return absl::OkStatus();
}

absl::Status CheckRmsNorm(const RmsNormParams& params) {
  if (params.rows < 0 || params.groups < 0 || params.cols < 1) {
    return absl::InvalidArgumentError(absl::StrCat("RmsNorm: rows ", params.rows, ", groups ",
                                                   params.groups, ", cols ", params.cols));
  }
  if (params.rows == 0 || params.groups == 0) return absl::OkStatus();
  const int64_t row_elements = params.groups * params.cols;
  if (params.x == nullptr || params.y == nullptr || params.weight == nullptr ||
      (params.rows > 1 && (params.x_stride < row_elements || params.y_stride < row_elements))) {
    return absl::InvalidArgumentError(
        absl::StrCat("RmsNorm: x_stride ", params.x_stride, " or y_stride ", params.y_stride,
                     " is below a row's ", row_elements, " elements, or an array is missing"));
  }
  return absl::OkStatus();
}

absl::Status CheckSwiGlu(const SwiGluParams& params) {
  if (params.tokens < 0 || params.cols < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("SwiGlu: tokens ", params.tokens, ", cols ", params.cols));
  }
  if (params.tokens == 0) return absl::OkStatus();
  if (params.gate_up == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError("SwiGlu: gate_up or y is missing");
  }
  return absl::OkStatus();
}

absl::Status CheckExperts(const char* operation, int64_t num_experts, int64_t top_k) {
  if (num_experts < 1 || num_experts > kMaxExperts) {
    return absl::InvalidArgumentError(
        absl::StrCat(operation, ": num_experts ", num_experts, " is not from 1 to ", kMaxExperts));
  }
  const int64_t most = std::min(num_experts, kMaxExpertsPerToken);
  if (top_k < 1 || top_k > most) {
    return absl::InvalidArgumentError(
        absl::StrCat(operation, ": top_k ", top_k, " is not from 1 to ", most));
  }
  return absl::OkStatus();
}

absl::Status CheckMoeRoute(const MoeRouteParams& params) {
  if (params.capacity < 0) {
    return absl::InvalidArgumentError(absl::StrCat("MoeRoute: capacity is ", params.capacity));
  }
  if (params.tokens == 0) return absl::OkStatus();
  if (params.logits == nullptr || params.experts == nullptr || params.weights == nullptr) {
    return absl::InvalidArgumentError("MoeRoute: logits, experts or weights is missing");
  }
  return absl::OkStatus();
}

absl::Status CheckMoePermute(const MoePermuteParams& params) {
  if (params.offsets == nullptr) {
    return absl::InvalidArgumentError("MoePermute: offsets is missing");
  }
  if (params.tokens > 0 &&
      (params.experts == nullptr || params.token_of == nullptr || params.place_of == nullptr)) {
    return absl::InvalidArgumentError("MoePermute: experts, token_of or place_of is missing");
  }
  return absl::OkStatus();
}

absl::Status CheckTreeSum(const TreeSumParams& params) {
  const int64_t parts = static_cast<int64_t>(params.parts.size());
  if (params.count < 0 || parts < 1 || parts > kMaxTreeParts) {
    return absl::InvalidArgumentError(absl::StrCat("TreeSum: count ", params.count, ", ", parts,
                                                   " parts, not 1 to ", kMaxTreeParts));
  }
  if (params.count == 0) return absl::OkStatus();
  for (int64_t i = 0; i < parts; ++i) {
    if (params.parts[i] == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("TreeSum: parts[", i, "] is missing"));
    }
  }
  if (params.y == nullptr) return absl::InvalidArgumentError("TreeSum: y is missing");
  return absl::OkStatus();
}

std::string SamplingRowError(const SamplingRow& row, int64_t vocab) {
  const auto out_of_range = [vocab](int64_t token) { return token < 0 || token >= vocab; };
  if (!(row.temperature >= 0.0f) || std::isinf(row.temperature)) {
    return absl::StrCat("temperature is ", row.temperature, ", not finite and at least 0");
  }
  if (row.top_k < 0) return absl::StrCat("top_k is ", row.top_k, ", not at least 0");
  if (!(row.top_p > 0.0f && row.top_p <= 1.0f)) {
    return absl::StrCat("top_p is ", row.top_p, ", not in (0, 1]");
  }
  if (!(row.min_p >= 0.0f && row.min_p <= 1.0f)) {
    return absl::StrCat("min_p is ", row.min_p, ", not in [0, 1]");
  }
  if (!std::isfinite(row.presence_penalty)) {
    return absl::StrCat("presence_penalty is ", row.presence_penalty);
  }
  if (!std::isfinite(row.frequency_penalty)) {
    return absl::StrCat("frequency_penalty is ", row.frequency_penalty);
  }
  if (!(row.repetition_penalty > 0.0f) || std::isinf(row.repetition_penalty)) {
    return absl::StrCat("repetition_penalty is ", row.repetition_penalty,
                        ", not finite and positive");
  }
  for (const auto& [token, bias] : row.logit_bias) {
    if (out_of_range(token)) return absl::StrCat("logit_bias names token ", token);
    if (std::isnan(bias) || bias == std::numeric_limits<float>::infinity()) {
      return absl::StrCat("logit_bias of token ", token, " is ", bias);
    }
  }
  for (const TokenCount& count : row.counts) {
    if (out_of_range(count.token)) return absl::StrCat("counts name token ", count.token);
  }
  for (int32_t token : row.banned) {
    if (out_of_range(token)) return absl::StrCat("banned names token ", token);
  }
  if (row.forced_token >= vocab) return absl::StrCat("forced_token is ", row.forced_token);
  return "";
}

bool HasPenalty(const SamplingRow& row) {
  return !row.counts.empty() && (row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f ||
                                 row.repetition_penalty != 1.0f);
}

}  // namespace verbatim::kernels

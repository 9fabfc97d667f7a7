// Checks of operations' arguments that do not depend on the backend, so that every backend refuses
// the same with the same words.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/decode_step.h"
#include "kernels/ops/kv_cache.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/sampling.h"
#include "kernels/ops/swiglu.h"
#include "kernels/ops/tree_sum.h"

namespace verbatim::kernels {

// INVALID_ARGUMENT names the field that is out of its range.
absl::Status CheckKvCacheConfig(const KvCacheConfig& config);

// INVALID_ARGUMENT names the span that does not fit the cache: a negative field, too few pages, a
// page that does not exist.
absl::Status CheckSpans(const KvCacheConfig& config, int64_t layer,
                        absl::Span<const SequenceSpan> spans);

// As CheckSpans; also a span that is not the one row of its place, and too few rows.
absl::Status CheckDecodeStep(const DecodeStep& step);

// INVALID_ARGUMENT for shapes that contradict the cache or each other, and for absent arrays.
absl::Status CheckAttention(const AttentionParams& params, const KvCacheConfig& config);
absl::Status CheckRmsNorm(const RmsNormParams& params);
absl::Status CheckSwiGlu(const SwiGluParams& params);
absl::Status CheckTreeSum(const TreeSumParams& params);

// INVALID_ARGUMENT naming the operation and the number that is out of its range.
absl::Status CheckExperts(const char* operation, int64_t num_experts, int64_t top_k);
// INVALID_ARGUMENT for a capacity below 0 and, if there are tokens, absent arrays.
absl::Status CheckMoeRoute(const MoeRouteParams& params);
// INVALID_ARGUMENT for absent arrays.
absl::Status CheckMoePermute(const MoePermuteParams& params);

// Empty, or what is wrong with a row.
std::string SamplingRowError(const SamplingRow& row, int64_t vocab);
// Whether penalties change any logit of the row.
bool HasPenalty(const SamplingRow& row);

}  // namespace verbatim::kernels

// Embedding on the CPU, the first operation of a step.
#include "kernels/cpu/embedding.h"

#include <atomic>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/float_environment.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cpu {

absl::Status Embedding(const CpuContext& context, const EmbeddingParams& params) {
  if (params.num_tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat("Embedding: num_tokens ", params.num_tokens));
  }
  const auto* table = dynamic_cast<const PackedMatrix*>(params.table);
  if (table == nullptr || !table->load_options().for_embedding) {
    return absl::InvalidArgumentError(
        "Embedding: the table is not a matrix that this backend loaded for embedding");
  }
  if (params.num_tokens > 0 && (params.tokens == nullptr || params.y == nullptr)) {
    return absl::InvalidArgumentError("Embedding: tokens or y is missing");
  }
  for (int64_t i = 0; i < params.num_tokens; ++i) {
    if (params.tokens[i] < 0 || params.tokens[i] >= table->rows()) {
      return absl::InvalidArgumentError(absl::StrCat("Embedding: tokens[", i, "] is ",
                                                     params.tokens[i], ", the table has ",
                                                     table->rows(), " rows"));
    }
  }
  const bool round =
      !IsStrong(params.mode.policy) && params.mode.activations == ActivationType::kBF16;
  const int64_t cols = table->cols();
  std::atomic<int> changed{0};
  context.pool->Run([&](int thread) {
    if (!CheckFloatEnvironment()) changed.fetch_add(1, std::memory_order_relaxed);
    const ThreadPool::Range range =
        ThreadPool::PartOf(params.num_tokens, 1, thread, context.pool->threads());
    for (int64_t i = range.begin; i < range.end; ++i) {
      float* y = params.y + i * cols;
      DecodeEmbeddingRow(*table, params.tokens[i], y);
      if (params.scale != 1.0f) {
        for (int64_t c = 0; c < cols; ++c) y[c] = params.scale * y[c];
      }
      if (!round) continue;
      for (int64_t c = 0; c < cols; ++c) y[c] = numerics::RoundToBf16(y[c]);
    }
  });
  if (const int count = changed.load(std::memory_order_relaxed); count > 0) {
    return absl::InternalError(
        absl::StrCat("the floating-point environment of ", count,
                     " compute threads had been changed (flush-to-zero, denormals-are-zero or "
                     "rounding); restored"));
  }
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

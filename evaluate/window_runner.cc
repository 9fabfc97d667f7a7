// Batching of windows.
#include "evaluate/window_runner.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/device/open_backend.h"

namespace verbatim::evaluate {
namespace {
constexpr int64_t kPageTokens = 32;
constexpr int64_t kLogitRows = 64;
}  // namespace

absl::StatusOr<std::unique_ptr<WindowRunner>> WindowRunner::Create(
    const model::Checkpoint& checkpoint, const WindowRunnerOptions& options) {
  const model::ModelConfig& config = checkpoint.config();
  if (options.window_tokens < 1 || options.window_tokens > config.max_position) {
    return absl::InvalidArgumentError(absl::StrCat("windows of ", options.window_tokens,
                                                   " tokens; the model has 1 to ",
                                                   config.max_position, " positions"));
  }
  auto runner = std::unique_ptr<WindowRunner>(new WindowRunner());
  runner->options_ = options;
  const int64_t rows = std::max(options.window_tokens, options.max_batch_rows);
  const int64_t windows = rows / options.window_tokens;
  absl::StatusOr<std::unique_ptr<kernels::Backend>> backend =
      kernels::OpenBackend({.device = options.device, .threads = options.threads});
  if (!backend.ok()) return backend.status();
  runner->backend_ = *std::move(backend);
  absl::StatusOr<std::unique_ptr<model::Transformer>> transformer =
      model::Transformer::Load(*runner->backend_, checkpoint,
                               {.max_batch_rows = windows * options.window_tokens,
                                .max_logit_rows = kLogitRows,
                                .max_model_len = options.window_tokens,
                                .moe_capacity_factor = options.moe_capacity_factor,
                                .moe_overflow = options.moe_overflow});
  if (!transformer.ok()) return transformer.status();
  runner->transformer_ = *std::move(transformer);
  const int64_t pages = (options.window_tokens + kPageTokens - 1) / kPageTokens;
  absl::StatusOr<std::unique_ptr<kernels::KvCache>> cache =
      runner->backend_->CreateKvCache({.num_layers = config.num_layers,
                                       .num_kv_heads = config.num_kv_heads,
                                       .head_dim = config.head_dim,
                                       .page_tokens = kPageTokens,
                                       .num_pages = pages * windows});
  if (!cache.ok()) return cache.status();
  runner->cache_ = *std::move(cache);
  for (int64_t i = 0; i < windows; ++i) {
    std::vector<int32_t> ids(pages);
    std::iota(ids.begin(), ids.end(), static_cast<int32_t>(i * pages));
    runner->pages_.push_back(std::move(ids));
  }
  return runner;
}

absl::Status WindowRunner::Run(absl::Span<const std::vector<int32_t>> windows,
                               const kernels::NumericMode& mode, BatchDone done) {
  const int64_t length = options_.window_tokens;
  const int64_t total = static_cast<int64_t>(windows.size());
  model::ForwardBatch batch;
  for (int64_t first = 0; first < total;) {
    const int64_t count = std::min(total - first, static_cast<int64_t>(pages_.size()));
    batch.Clear();
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<int32_t>& ids = windows[first + i];
      if (static_cast<int64_t>(ids.size()) != length) {
        return absl::InvalidArgumentError(
            absl::StrCat("window ", first + i, " has ", ids.size(), " tokens, not ", length));
      }
      batch.spans.push_back({.first_row = static_cast<int32_t>(batch.rows()),
                             .num_rows = static_cast<int32_t>(length),
                             .first_position = 0,
                             .pages = pages_[i].data(),
                             .num_pages = static_cast<int32_t>(pages_[i].size())});
      batch.tokens.insert(batch.tokens.end(), ids.begin(), ids.end());
      for (int64_t p = 0; p < length; ++p) batch.positions.push_back(static_cast<int32_t>(p));
    }
    absl::Status status = transformer_->Forward(batch, mode, *cache_);
    if (status.ok()) status = done(first, count);
    if (!status.ok()) return status;
    first += count;
  }
  return absl::OkStatus();
}

absl::Status WindowRunner::Logits(int64_t first, int64_t count, const kernels::NumericMode& mode,
                                  TakeLogits take) {
  const int64_t vocab = transformer_->config().vocab_size;
  std::vector<int32_t> rows;
  for (int64_t done = 0; done < count;) {
    const int64_t slice = std::min(count - done, kLogitRows);
    rows.resize(slice);
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first + done));
    absl::StatusOr<const float*> logits = transformer_->ComputeLogits(rows, mode);
    if (!logits.ok()) return logits.status();
    host_logits_.resize(slice * vocab);
    absl::Status copied =
        backend_->CopyToHost(host_logits_.data(), *logits, host_logits_.size() * sizeof(float));
    if (!copied.ok()) return copied;
    take(first + done, slice, host_logits_.data());
    done += slice;
  }
  return absl::OkStatus();
}

}  // namespace verbatim::evaluate

// Runs a checkpoint's forward pass on the CPU backend for tests.
#include "tests/reference/forward_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"

namespace verbatim::testing {
namespace {
constexpr int64_t kPageTokens = 32;
constexpr int64_t kMaxLogitRows = 96;

// Another checkpoint's tensors under another configuration.
class AlteredCheckpoint final : public model::Checkpoint {
 public:
  AlteredCheckpoint(std::unique_ptr<model::Checkpoint> base,
                    const std::function<void(model::ModelConfig&)>& alter)
      : base_(std::move(base)), config_(base_->config()) {
    alter(config_);
  }

  const model::ModelConfig& config() const override { return config_; }
  absl::StatusOr<kernels::StoredMatrix> Matrix(std::string_view name) const override {
    return base_->Matrix(name);
  }
  absl::StatusOr<std::vector<float>> Vector(std::string_view name) const override {
    return base_->Vector(name);
  }
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> LoadTokenizer() const override {
    return base_->LoadTokenizer();
  }
  std::string WeightsFingerprint() const override { return base_->WeightsFingerprint(); }
  int64_t weight_bytes() const override { return base_->weight_bytes(); }
  const std::string& path() const override { return base_->path(); }

 private:
  const std::unique_ptr<model::Checkpoint> base_;
  model::ModelConfig config_;
};
}  // namespace

absl::StatusOr<std::unique_ptr<ForwardRunner>> ForwardRunner::Create(
    const std::string& checkpoint_path, int64_t max_tokens, int64_t max_sequences) {
  return CreateAltered(checkpoint_path, max_tokens, max_sequences, [](model::ModelConfig&) {});
}

absl::StatusOr<std::unique_ptr<ForwardRunner>> ForwardRunner::CreateAltered(
    const std::string& checkpoint_path, int64_t max_tokens, int64_t max_sequences,
    const std::function<void(model::ModelConfig&)>& alter) {
  auto runner = std::unique_ptr<ForwardRunner>(new ForwardRunner());
  return OnCpu(std::move(runner), checkpoint_path, max_tokens, max_sequences, alter);
}

absl::StatusOr<std::unique_ptr<ForwardRunner>> ForwardRunner::CreateLimited(
    const std::string& checkpoint_path, int64_t max_tokens, int64_t max_sequences,
    double moe_capacity_factor, kernels::CapacityOverflow moe_overflow) {
  auto runner = std::unique_ptr<ForwardRunner>(new ForwardRunner());
  runner->moe_capacity_factor_ = moe_capacity_factor;
  runner->moe_overflow_ = moe_overflow;
  return OnCpu(std::move(runner), checkpoint_path, max_tokens, max_sequences,
               [](model::ModelConfig&) {});
}

absl::StatusOr<std::unique_ptr<ForwardRunner>> ForwardRunner::OnCpu(
    std::unique_ptr<ForwardRunner> runner, const std::string& checkpoint_path, int64_t max_tokens,
    int64_t max_sequences, const std::function<void(model::ModelConfig&)>& alter) {
  absl::StatusOr<std::unique_ptr<model::Checkpoint>> checkpoint =
      model::Checkpoint::Open(checkpoint_path);
  if (!checkpoint.ok()) return checkpoint.status();
  runner->checkpoint_ = std::make_unique<AlteredCheckpoint>(*std::move(checkpoint), alter);
  absl::StatusOr<std::unique_ptr<kernels::Backend>> backend =
      kernels::cpu::CpuBackend::Create(kernels::cpu::CpuBackendOptions{});
  if (!backend.ok()) return backend.status();
  runner->backend_ = *std::move(backend);
  if (absl::Status status = runner->Prepare(max_tokens, max_sequences); !status.ok()) return status;
  return runner;
}

absl::StatusOr<std::unique_ptr<ForwardRunner>> ForwardRunner::CreateOn(
    std::unique_ptr<kernels::Backend> backend, const std::string& checkpoint_path,
    int64_t max_tokens, int64_t max_sequences, kernels::DType cache_dtype) {
  auto runner = std::unique_ptr<ForwardRunner>(new ForwardRunner());
  runner->cache_dtype_ = cache_dtype;
  absl::StatusOr<std::unique_ptr<model::Checkpoint>> checkpoint =
      model::Checkpoint::Open(checkpoint_path);
  if (!checkpoint.ok()) return checkpoint.status();
  runner->checkpoint_ = *std::move(checkpoint);
  runner->backend_ = std::move(backend);
  if (absl::Status status = runner->Prepare(max_tokens, max_sequences); !status.ok()) return status;
  return runner;
}

absl::Status ForwardRunner::Prepare(int64_t max_tokens, int64_t max_sequences) {
  absl::StatusOr<std::unique_ptr<model::Transformer>> transformer =
      model::Transformer::Load(*backend_, *checkpoint_,
                               {.max_batch_rows = max_tokens * max_sequences,
                                .max_logit_rows = kMaxLogitRows,
                                .max_model_len = max_tokens,
                                .moe_capacity_factor = moe_capacity_factor_,
                                .moe_overflow = moe_overflow_});
  if (!transformer.ok()) return transformer.status();
  transformer_ = *std::move(transformer);

  const int64_t pages_per_sequence = (max_tokens + kPageTokens - 1) / kPageTokens;
  const model::ModelConfig& config = transformer_->config();
  absl::StatusOr<std::unique_ptr<kernels::KvCache>> cache =
      backend_->CreateKvCache({.num_layers = config.num_layers,
                               .num_kv_heads = config.num_kv_heads,
                               .head_dim = config.head_dim,
                               .page_tokens = kPageTokens,
                               .num_pages = pages_per_sequence * max_sequences,
                               .dtype = cache_dtype_});
  if (!cache.ok()) return cache.status();
  cache_ = *std::move(cache);
  // Sequences take pages in turn, from the last one down.
  int32_t next = static_cast<int32_t>(pages_per_sequence * max_sequences);
  pages_.resize(max_sequences);
  for (int64_t i = 0; i < pages_per_sequence; ++i) {
    for (std::vector<int32_t>& pages : pages_) pages.push_back(--next);
  }
  return absl::OkStatus();
}

void ForwardRunner::AppendSpan(model::ForwardBatch& batch, int64_t sequence, int32_t first_position,
                               const int32_t* tokens, int32_t count) const {
  const std::vector<int32_t>& pages = pages_[sequence];
  batch.spans.push_back({.first_row = static_cast<int32_t>(batch.rows()),
                         .num_rows = count,
                         .first_position = first_position,
                         .pages = pages.data(),
                         .num_pages = static_cast<int32_t>(pages.size())});
  for (int32_t i = 0; i < count; ++i) {
    batch.tokens.push_back(tokens[i]);
    batch.positions.push_back(first_position + i);
    if (!exempt_.empty()) batch.capacity_exempt.push_back(exempt_[sequence] ? 1 : 0);
  }
}

absl::Status ForwardRunner::Step(const model::ForwardBatch& batch, const kernels::NumericMode& mode,
                                 const std::vector<int32_t>& rows, std::vector<LogitRow>& out) {
  absl::Status status = transformer_->Forward(batch, mode, *cache_);
  if (!status.ok()) return status;
  out.clear();
  if (rows.empty()) return absl::OkStatus();
  absl::StatusOr<const float*> logits = transformer_->ComputeLogits(rows, mode);
  if (!logits.ok()) return logits.status();
  const int64_t vocab = config().vocab_size;
  for (size_t i = 0; i < rows.size(); ++i) {
    LogitRow row(vocab);
    status.Update(backend_->CopyToHost(row.data(), *logits + i * vocab, vocab * sizeof(float)));
    out.push_back(std::move(row));
  }
  return status;
}

absl::StatusOr<std::vector<std::vector<LogitRow>>> ForwardRunner::Prefill(
    const std::vector<ForwardSequence>& sequences, const kernels::NumericMode& mode,
    int64_t chunk_tokens) {
  if (sequences.size() > pages_.size()) return absl::InvalidArgumentError("too many sequences");
  for (const std::vector<int32_t>& pages : pages_) {
    absl::Status poisoned = cache_->Poison(pages);
    if (!poisoned.ok()) return poisoned;
  }
  std::vector<std::vector<LogitRow>> result(sequences.size());
  int64_t longest = 0;
  for (const ForwardSequence& s : sequences) {
    longest = std::max<int64_t>(longest, s.ids.size());
  }
  const int64_t chunk = chunk_tokens == 0 ? longest : chunk_tokens;
  for (int64_t first = 0; first < longest; first += chunk) {
    model::ForwardBatch batch;
    std::vector<int32_t> rows;
    std::vector<size_t> owners;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const int64_t length = sequences[s].ids.size();
      const int64_t end = std::min(first + chunk, length);
      if (first >= end) continue;
      const int64_t first_row = batch.rows();
      AppendSpan(batch, s, first, sequences[s].ids.data() + first, end - first);
      for (int32_t position : sequences[s].positions) {
        if (position < first || position >= end) continue;
        rows.push_back(first_row + position - first);
        owners.push_back(s);
      }
    }
    if (!exempt_rows_.empty()) batch.capacity_exempt = exempt_rows_;
    std::vector<LogitRow> logits;
    absl::Status status = Step(batch, mode, rows, logits);
    if (!status.ok()) return status;
    for (size_t i = 0; i < owners.size(); ++i) {
      result[owners[i]].push_back(std::move(logits[i]));
    }
  }
  return result;
}

absl::StatusOr<LogitRow> ForwardRunner::Decode(int32_t token, int32_t position,
                                               const kernels::NumericMode& mode) {
  model::ForwardBatch batch;
  AppendSpan(batch, 0, position, &token, 1);
  std::vector<LogitRow> logits;
  absl::Status status = Step(batch, mode, {0}, logits);
  if (!status.ok()) return status;
  return std::move(logits[0]);
}

bool ForwardRunner::RoundsInputs(const kernels::NumericMode& mode) const {
  if (mode.policy == kernels::Policy::kThroughput) {
    return mode.activations == kernels::ActivationType::kBF16;
  }
  // A policy without rounding is PORTABLE, by another name or not.
  return *backend_->NumericsTag(mode.policy) != *backend_->NumericsTag(kernels::Policy::kPortable);
}

}  // namespace verbatim::testing

// The forward pass of a dense decoder-only transformer (Llama, Mistral, Qwen2, Qwen3) over a batch
// of token rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"

namespace verbatim::model {

// Rows of one step: each row is one position of one sequence.
struct ForwardBatch {
  std::vector<int32_t> tokens;               // [rows], each in [0, vocab)
  std::vector<int32_t> positions;            // [rows], each in [0, max_model_len)
  std::vector<kernels::SequenceSpan> spans;  // cover all rows, in row order

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  void Clear();
};

struct TransformerOptions {
  int64_t max_batch_rows = 512;  // rows of one Forward
  int64_t max_logit_rows = 64;   // rows of one ComputeLogits
  int64_t max_model_len = 2048;  // positions; rotary tables are built for these
};

// Owns weights and activations on one backend. Not thread-safe; lives on the engine's thread.
class Transformer {
 public:
  // Packs the weights. The checkpoint must outlive the result. RESOURCE_EXHAUSTED when they do not
  // fit.
  static absl::StatusOr<std::unique_ptr<Transformer>> Load(kernels::Backend& backend,
                                                           const Checkpoint& checkpoint,
                                                           const TransformerOptions& options);

  // Runs all layers over the batch, writing K and V into `cache`, and keeps the final residual rows
  // for ComputeLogits.
  absl::Status Forward(const ForwardBatch& batch, const kernels::NumericMode& mode,
                       kernels::KvCache& cache);

  // Raw logits [rows.size(), vocab] of the given rows of the last Forward; at most max_logit_rows
  // of them. The memory is the backend's and is overwritten by the next call.
  absl::StatusOr<const float*> ComputeLogits(absl::Span<const int32_t> rows,
                                             const kernels::NumericMode& mode);

  const ModelConfig& config() const { return config_; }
  const TransformerOptions& options() const { return options_; }
  // All packed copies of the weights together.
  int64_t weight_bytes() const;

 private:
  struct Layer {
    std::unique_ptr<kernels::Buffer> attn_norm, ffn_norm;  // [hidden]
    std::unique_ptr<kernels::Buffer> q_norm, k_norm;       // [head_dim], Qwen3
    std::unique_ptr<kernels::Buffer> qkv_bias;             // [qkv], Qwen2
    std::unique_ptr<kernels::WeightMatrix> qkv, o, gate_up, down;
  };

  Transformer(kernels::Backend& backend, const ModelConfig& config,
              const TransformerOptions& options)
      : backend_(backend), config_(config), options_(options) {}

  absl::Status LoadLayer(const Checkpoint& checkpoint, int64_t index, Layer& layer);
  absl::Status AllocateActivations();
  absl::Status RunLayer(int64_t index, const ForwardBatch& batch, const kernels::NumericMode& mode,
                        kernels::KvCache& cache);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> Upload(const std::vector<float>& values);

  int64_t q_size() const { return config_.num_heads * config_.head_dim; }
  int64_t kv_size() const { return config_.num_kv_heads * config_.head_dim; }
  int64_t qkv_size() const { return q_size() + 2 * kv_size(); }

  kernels::Backend& backend_;
  const ModelConfig config_;
  const TransformerOptions options_;
  std::vector<Layer> layers_;
  std::unique_ptr<kernels::WeightMatrix> embed_;    // also lm_head when tied
  std::unique_ptr<kernels::WeightMatrix> lm_head_;  // null when tied
  std::unique_ptr<kernels::Buffer> final_norm_, cos_, sin_;
  // Activations, all fp32 with max_batch_rows (or max_logit_rows) rows.
  std::unique_ptr<kernels::Buffer> tokens_, positions_, x_, normed_, qkv_, attended_, gate_up_,
      act_;
  std::unique_ptr<kernels::Buffer> row_index_, gathered_, gathered_normed_, logits_;
  int64_t last_rows_ = 0;
};

}  // namespace verbatim::model

// The forward pass of a decoder-only transformer (Llama, Mistral, Qwen2 and Qwen3, and the mixtures
// of experts Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE and Granite-MoE) over a batch of token rows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/feed_forward.h"
#include "model/forward_observer.h"
#include "model/load_matrix.h"
#include "model/moe_statistics.h"
#include "model/shard_plan.h"
#include "parallel/communicator.h"
#include "parallel/partial_sums.h"

namespace verbatim::model {

// Rows of one step: each row is one position of one sequence.
struct ForwardBatch {
  std::vector<int32_t> tokens;               // [rows], each in [0, vocab)
  std::vector<int32_t> positions;            // [rows], each in [0, max_model_len)
  std::vector<kernels::SequenceSpan> spans;  // cover all rows, in row order
  // [rows], non-zero: the row takes its experts whatever their capacity and counts towards none;
  // empty: no row is exempt. Rows of strong policies must be.
  std::vector<uint8_t> capacity_exempt;
  // Null: nothing is forced. Only without a capacity factor. Not owned.
  const ForcedRouting* forced_routing = nullptr;

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  // Whether every sequence has one row, its span's place that row's.
  bool IsDecode() const;
  void Clear();
};

struct TransformerOptions {
  int64_t max_batch_rows = 512;  // rows of one Forward
  int64_t max_logit_rows = 64;   // rows of one ComputeLogits
  int64_t max_model_len = 2048;  // positions; rotary tables are built for these
  // Tensor parallelism: this rank's end; null: there is one rank. Must outlive the transformer.
  parallel::Communicator* communicator = nullptr;
  // Mixtures of experts: in one Forward an expert takes at most ceil(factor · rows that are not
  // exempt · experts per token / experts) of those rows (GShard, Switch). 0: no limit.
  double moe_capacity_factor = 0;
  kernels::CapacityOverflow moe_overflow = kernels::CapacityOverflow::kDrop;
};

// How rank 0 computes a decode step: the others compute as many rows, and do the same about
// recordings (kernels::Backend::DecodePlan), because a recording holds the ranks' exchanges.
struct DecodeTerms {
  int64_t rows = 0;  // 0: the step is no decode step
  bool replayable = false;
  std::string plan;  // empty where ranks' exchanges cannot be recorded

  bool operator==(const DecodeTerms&) const = default;
};

// Owns weights and activations on one backend. Not thread-safe; lives on the engine's thread.
//
// With several ranks, rank 0's calls of Forward and ComputeLogits announce themselves to the
// others, which make the same calls in FollowSteps (model/step_announcement.h). A call that fails
// after that fails on every rank, and for good.
class Transformer {
 public:
  ~Transformer();

  // Packs the weights. The checkpoint must outlive the result. RESOURCE_EXHAUSTED when they do not
  // fit.
  static absl::StatusOr<std::unique_ptr<Transformer>> Load(kernels::Backend& backend,
                                                           const Checkpoint& checkpoint,
                                                           const TransformerOptions& options);

  // Runs all layers over the batch, writing K and V into `cache`, and keeps the final residual rows
  // for ComputeLogits.
  absl::Status Forward(const ForwardBatch& batch, const kernels::NumericMode& mode,
                       kernels::KvCache& cache);

  // Forward as rank 0 has announced it to this one. INTERNAL where this rank would do something
  // else about recordings.
  absl::Status FollowForward(const ForwardBatch& batch, const kernels::NumericMode& mode,
                             kernels::KvCache& cache, const DecodeTerms& terms);

  // Where decode steps are recorded: runs one of one sequence on page 0 of the cache (with several
  // ranks, called by rank 0: of every rank's), whose content is lost, and replays it, so that what
  // cannot be recorded shows now. Its results are thrown away.
  absl::Status TryDecode(const kernels::NumericMode& mode, kernels::KvCache& cache);

  // Raw logits [rows.size(), vocab] of the given rows of the last Forward; at most max_logit_rows
  // of them. The memory is the backend's and is overwritten by the next call. Ranks other than 0
  // get their own columns only.
  absl::StatusOr<const float*> ComputeLogits(absl::Span<const int32_t> rows,
                                             const kernels::NumericMode& mode);

  // The kernel that each matrix product of Forward (rows = the batch's), or of ComputeLogits with
  // that many rows, would run on: "qkv", "o", "gate_up", "down" or "lm_head" with the kernel's
  // name, or with runs of it where layers differ ("onednn*2+bf16*28"). Mixtures of experts have
  // "router", "experts_gate_up", "experts_down", "shared_gate_up" and "shared_down"; a layer
  // without such a matrix counts as "none".
  std::vector<std::pair<std::string, std::string>> GemmKernels(const kernels::NumericMode& mode,
                                                               int64_t rows, bool logits) const;

  // Where tokens went, over all finished Forwards: an entry for each layer that is a mixture of
  // experts, none for a dense model.
  absl::StatusOr<std::vector<MoeStatistics>> ExpertStatistics() {
    return feed_forward_->Statistics();
  }

  // The experts of the rows of the last Forward.
  absl::StatusOr<FeedForward::Routing> LastRouting() { return feed_forward_->LastRouting(); }

  // As FeedForward::ExpertKernels.
  std::vector<std::pair<std::string, std::string>> ExpertKernels(const kernels::NumericMode& mode,
                                                                 int64_t tokens) const {
    return feed_forward_->ExpertKernels(mode, tokens);
  }

  // Sees every operation's output from now on; null (the default): nobody does. Must outlive its
  // use.
  void set_observer(ForwardObserver* observer) { observer_ = observer; }

  const ModelConfig& config() const { return config_; }
  // What this rank holds of it.
  const ShardPlan& shard() const { return plan_; }
  // Heads of this rank, and of its KV cache.
  int64_t num_heads() const { return local_.num_heads; }
  int64_t num_kv_heads() const { return local_.num_kv_heads; }
  // Why the ranks cannot honour a policy that the backend can, or empty.
  std::string RefusalOf(kernels::Policy policy) const {
    return policy == kernels::Policy::kPinned ? pinned_refusal_ : "";
  }
  const TransformerOptions& options() const { return options_; }
  // All packed copies of the weights together.
  int64_t weight_bytes() const;

 private:
  struct Layer {
    std::unique_ptr<kernels::Buffer> attn_norm, ffn_norm;  // [hidden]
    std::unique_ptr<kernels::Buffer> q_norm, k_norm;       // [head_dim], or of all heads (OLMoE)
    std::unique_ptr<kernels::Buffer> qkv_bias;             // [qkv], Qwen2
    std::unique_ptr<kernels::WeightMatrix> qkv, o;
  };

  Transformer(kernels::Backend& backend, const ModelConfig& config,
              const TransformerOptions& options, const ShardPlan& plan)
      : backend_(backend),
        config_(config),
        options_(options),
        plan_(plan),
        local_(plan.Local(config)) {}

  absl::Status LoadEmbeddings(const Checkpoint& checkpoint);
  absl::Status LoadLayer(const Checkpoint& checkpoint, int64_t index, Layer& layer);
  std::string FindPinnedRefusal() const;
  bool sharded() const { return plan_.degree > 1; }
  bool leads() const { return sharded() && plan_.rank == 0; }
  // What a call returns that failed after the others began it too.
  absl::Status FailEverywhere(const absl::Status& status);
  absl::Status CheckStep(const ForwardBatch& batch, const kernels::NumericMode& mode) const;
  // Decode steps have padding behind their rows where the backend asks for it, whether or not
  // somebody looks on: a THROUGHPUT kernel may be chosen by the number of rows.
  DecodeTerms TermsOf(const ForwardBatch& batch, const kernels::NumericMode& mode,
                      kernels::KvCache& cache) const;
  kernels::DecodeStep StepOf(const ForwardBatch& batch, const kernels::NumericMode& mode,
                             kernels::KvCache& cache, const DecodeTerms& terms) const;
  absl::Status CheckTerms(const ForwardBatch& batch, const kernels::NumericMode& mode,
                          kernels::KvCache& cache, const DecodeTerms& terms) const;
  // Whether steps can be recorded with what ranks exchange in them.
  bool RecordsExchanges() const {
    return sharded() && backend_.RecordsDecode() && options_.communicator->on_stream();
  }
  absl::Status ForwardShard(const ForwardBatch& batch, const kernels::NumericMode& mode,
                            kernels::KvCache& cache, const DecodeTerms& terms);
  absl::Status ComputeLogitsShard(absl::Span<const int32_t> rows, const kernels::NumericMode& mode);
  absl::Status GatherLogits(int64_t rows);
  // x += attended · oᵀ.
  absl::Status ProjectOutput(const Layer& layer, const kernels::NumericMode& mode, int64_t rows);
  absl::Status BuildRopeTables();
  absl::Status AllocateActivations();
  absl::Status UploadRows(const ForwardBatch& batch, int64_t rows);
  // Embedding and all layers over `rows` rows, those behind the batch's being padding.
  absl::Status RunLayers(const ForwardBatch& batch, int64_t rows, const kernels::NumericMode& mode,
                         kernels::KvCache& cache);
  absl::Status RunLayer(int64_t index, const ForwardBatch& batch, int64_t rows,
                        const kernels::NumericMode& mode, kernels::KvCache& cache);
  absl::Status NormHeads(const Layer& layer, const kernels::NumericMode& mode, int64_t rows);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> Upload(const std::vector<float>& values);

  void Observe(Operation operation, int64_t layer, const float* data, int64_t rows, int64_t cols) {
    if (observer_ == nullptr) return;
    observer_->OnOutput({operation, layer, data, rows, cols, cols});
  }

  int64_t q_size() const { return local_.num_heads * config_.head_dim; }
  int64_t kv_size() const { return local_.num_kv_heads * config_.head_dim; }
  int64_t qkv_size() const { return q_size() + 2 * kv_size(); }
  // Granite adds m · f(norm(x)) to the residual stream x, and embeds with a factor. The buffer x_
  // holds x' = x / m instead, so that no operation needs to know of m: x' grows by f(norm(x)), and
  // norm(x) with eps is norm(x') with eps / m². The division of the logits is folded into the
  // weights of the final norm. All of these are 1 in other families, and change no bit there.
  float embedding_scale() const {
    return static_cast<float>(config_.embedding_multiplier / config_.residual_multiplier);
  }
  float residual_eps() const {
    const double m = config_.residual_multiplier;
    return static_cast<float>(config_.rms_norm_eps / (m * m));
  }

  kernels::Backend& backend_;
  const ModelConfig config_;
  const TransformerOptions options_;
  const ShardPlan plan_;
  const ModelConfig local_;  // of this rank
  ColumnSlices slices_;
  std::string pinned_refusal_;
  std::unique_ptr<parallel::PartialSums> sums_;  // null with one rank
  std::vector<Layer> layers_;
  std::unique_ptr<FeedForward> feed_forward_;
  std::unique_ptr<kernels::WeightMatrix> embed_;    // also lm_head where that is null
  std::unique_ptr<kernels::WeightMatrix> lm_head_;  // null when tied, with one rank
  std::unique_ptr<kernels::Buffer> final_norm_, cos_, sin_;
  // Activations, all fp32 with room for the padding of max_batch_rows (or max_logit_rows) rows.
  std::unique_ptr<kernels::Buffer> tokens_, positions_, x_, normed_, qkv_, attended_;
  std::unique_ptr<kernels::Buffer> partial_;  // null with one rank
  std::unique_ptr<kernels::Buffer> row_index_, gathered_, gathered_normed_, logits_;
  std::vector<int32_t> padded_;
  int64_t last_rows_ = 0;
  ForwardObserver* observer_ = nullptr;
};

}  // namespace verbatim::model

// Loading of the weights, rotary tables and activations of a transformer.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/numerics/rope_table.h"
#include "model/load_matrix.h"
#include "model/transformer.h"

namespace verbatim::model {

using kernels::Buffer;
using kernels::WeightMatrix;

Transformer::~Transformer() {
  // Recorded exchanges go before the memory that they are about.
  if (sharded()) backend_.ForgetDecode();
}

absl::StatusOr<std::unique_ptr<Buffer>> Transformer::Upload(const std::vector<float>& values) {
  absl::StatusOr<std::unique_ptr<Buffer>> buffer = backend_.Allocate(values.size() * sizeof(float));
  if (!buffer.ok()) return buffer.status();
  absl::Status copied =
      backend_.CopyToDevice((*buffer)->data(), values.data(), values.size() * sizeof(float));
  if (!copied.ok()) return copied;
  return buffer;
}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Load(kernels::Backend& backend,
                                                               const Checkpoint& checkpoint,
                                                               const TransformerOptions& options) {
  const ModelConfig& config = checkpoint.config();
  if (options.max_batch_rows < 1 || options.max_logit_rows < 1 || options.max_model_len < 1) {
    return absl::InvalidArgumentError("transformer options must be positive");
  }
  if (!(options.moe_capacity_factor >= 0) || std::isinf(options.moe_capacity_factor)) {
    return absl::InvalidArgumentError(absl::StrCat("moe_capacity_factor is ",
                                                   options.moe_capacity_factor,
                                                   ", not 0 (no limit) or a positive number"));
  }
  parallel::Communicator* const ranks = options.communicator;
  absl::StatusOr<ShardPlan> plan =
      PlanShard(config, ranks == nullptr ? 0 : ranks->rank(), ranks == nullptr ? 1 : ranks->size());
  if (!plan.ok()) return plan.status();
  auto model = std::unique_ptr<Transformer>(new Transformer(backend, config, options, *plan));
  if (model->sharded()) {
    const int64_t rows = backend.DecodeRows(options.max_batch_rows) *
                         std::max<int64_t>(config.moe.experts_per_token, 1);
    absl::StatusOr<std::unique_ptr<parallel::PartialSums>> sums =
        parallel::PartialSums::Create(backend, *ranks, rows * config.hidden_size);
    if (!sums.ok()) return sums.status();
    model->sums_ = *std::move(sums);
  }
  if (absl::Status loaded = model->LoadEmbeddings(checkpoint); !loaded.ok()) return loaded;
  absl::StatusOr<std::vector<float>> norm = checkpoint.Vector("final_norm");
  if (!norm.ok()) return norm.status();
  if (config.logits_scaling != 1.0) {
    for (float& weight : *norm) weight = static_cast<float>(weight / config.logits_scaling);
  }
  absl::StatusOr<std::unique_ptr<Buffer>> uploaded = model->Upload(*norm);
  if (!uploaded.ok()) return uploaded.status();
  model->final_norm_ = *std::move(uploaded);

  model->layers_.resize(config.num_layers);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    absl::Status loaded = model->LoadLayer(checkpoint, i, model->layers_[i]);
    if (!loaded.ok()) return loaded;
  }
  absl::StatusOr<std::unique_ptr<FeedForward>> feed_forward =
      FeedForward::Load(backend, checkpoint,
                        {.max_rows = backend.DecodeRows(options.max_batch_rows),
                         .capacity_factor = options.moe_capacity_factor,
                         .overflow = options.moe_overflow,
                         .plan = *plan,
                         .sums = model->sums_.get()});
  if (!feed_forward.ok()) return feed_forward.status();
  model->feed_forward_ = *std::move(feed_forward);
  absl::Status status = model->BuildRopeTables();
  if (status.ok()) status = model->AllocateActivations();
  if (!status.ok()) return status;
  model->pinned_refusal_ = model->FindPinnedRefusal();
  return model;
}

std::string Transformer::FindPinnedRefusal() const {
  if (!sharded()) return "";
  if (plan_.shard_depth() < 0) {
    return absl::StrCat("tensor_parallel_size: ", plan_.degree, " is more than its ",
                        MaxPinnedDegree(), " shards");
  }
  const ColumnSlices* slices = &slices_;
  if (slices->decoded == nullptr) slices = &feed_forward_->slices();
  if (slices->decoded == nullptr) return "";
  // Decoded weights are right where PINNED computes with values, not with the stored blocks.
  const auto pinned = backend_.NumericsTag(kernels::Policy::kPinned);
  const auto portable = backend_.NumericsTag(kernels::Policy::kPortable);
  const auto kernel = [&](kernels::Policy in) {
    return backend_.GemmKernel({.policy = in}, *slices->decoded, 1);
  };
  if (!pinned.ok() || !portable.ok() || *pinned == *portable ||
      kernel(kernels::Policy::kPinned) != kernel(kernels::Policy::kPortable)) {
    return "";
  }
  return absl::StrCat("tensor_parallel_size: ", plan_.degree, " ranks would cut blocks of ",
                      slices->decoded_name, ", with which this processor computes as a whole");
}

absl::Status Transformer::LoadEmbeddings(const Checkpoint& checkpoint) {
  const bool shared = config_.tied_embeddings && !sharded();
  auto embed =
      LoadMatrix(backend_, checkpoint, "embed", {.for_gemm = shared, .for_embedding = true});
  if (!embed.ok()) return embed.status();
  embed_ = *std::move(embed);
  if (shared) return absl::OkStatus();
  const std::string name = config_.tied_embeddings ? "embed" : "lm_head";
  auto head = LoadRows(backend_, checkpoint, {RowsOfMatrix{name, {plan_.vocab}}});
  if (!head.ok()) return head.status();
  lm_head_ = *std::move(head);
  return absl::OkStatus();
}

absl::Status Transformer::LoadLayer(const Checkpoint& checkpoint, int64_t index, Layer& layer) {
  const std::string prefix = absl::StrCat("layers.", index, ".");
  const auto keep = [](std::unique_ptr<WeightMatrix>& out,
                       absl::StatusOr<std::unique_ptr<WeightMatrix>> loaded) {
    if (!loaded.ok()) return loaded.status();
    out = *std::move(loaded);
    return absl::OkStatus();
  };
  // The rows of this rank's heads, neighbours as one range.
  const int64_t dim = config_.head_dim;
  const Range queries = {plan_.heads.begin * dim, plan_.heads.end * dim};
  std::vector<Range> keys;
  for (int64_t head : plan_.kv_heads) {
    if (!keys.empty() && keys.back().end == head * dim) {
      keys.back().end += dim;
    } else {
      keys.push_back({head * dim, (head + 1) * dim});
    }
  }
  const auto vector = [&](std::unique_ptr<Buffer>& out, const std::vector<RowsOfMatrix>& parts) {
    std::vector<float> joined;
    for (const RowsOfMatrix& part : parts) {
      absl::StatusOr<std::vector<float>> whole = checkpoint.Vector(prefix + part.name);
      if (!whole.ok()) return whole.status();
      if (part.rows.empty()) joined.insert(joined.end(), whole->begin(), whole->end());
      for (const Range& range : part.rows) {
        joined.insert(joined.end(), whole->begin() + range.begin, whole->begin() + range.end);
      }
    }
    absl::StatusOr<std::unique_ptr<Buffer>> uploaded = Upload(joined);
    if (!uploaded.ok()) return uploaded.status();
    out = *std::move(uploaded);
    return absl::OkStatus();
  };
  absl::Status status = vector(layer.attn_norm, {{"attn_norm"}});
  status.Update(vector(layer.ffn_norm, {{"ffn_norm"}}));
  status.Update(keep(
      layer.qkv, LoadRows(backend_, checkpoint,
                          {RowsOfMatrix{prefix + "q", {queries}}, RowsOfMatrix{prefix + "k", keys},
                           RowsOfMatrix{prefix + "v", keys}})));
  status.Update(
      keep(layer.o, LoadColumns(backend_, checkpoint, prefix + "o", queries,
                                {.shard_depth = std::max(plan_.shard_depth(), 0)}, slices_)));
  if (config_.qkv_bias) {
    status.Update(
        vector(layer.qkv_bias, {{"q.bias", {queries}}, {"k.bias", keys}, {"v.bias", keys}}));
  }
  if (config_.qk_norm != QkNorm::kNone) {
    status.Update(vector(layer.q_norm, {{"q_norm"}}));
    status.Update(vector(layer.k_norm, {{"k_norm"}}));
  }
  return status;
}

absl::Status Transformer::BuildRopeTables() {
  numerics::RopeTableParams rope;
  rope.head_dim = config_.head_dim;
  rope.max_position = options_.max_model_len;
  rope.theta = config_.rope_theta;
  switch (config_.rope_scaling.kind) {
    case RopeScaling::Kind::kNone:
      rope.scaling = numerics::RopeScalingKind::kNone;
      break;
    case RopeScaling::Kind::kLinear:
      rope.scaling = numerics::RopeScalingKind::kLinear;
      break;
    case RopeScaling::Kind::kLlama3:
      rope.scaling = numerics::RopeScalingKind::kLlama3;
      break;
  }
  rope.factor = config_.rope_scaling.factor;
  rope.low_freq_factor = config_.rope_scaling.low_freq_factor;
  rope.high_freq_factor = config_.rope_scaling.high_freq_factor;
  rope.original_max_position = config_.rope_scaling.original_max_position;
  rope.freq_factors = config_.rope_freq_factors;
  const numerics::RopeTable table = numerics::BuildRopeTable(rope);
  absl::StatusOr<std::unique_ptr<Buffer>> cos = Upload(table.cos);
  if (!cos.ok()) return cos.status();
  cos_ = *std::move(cos);
  absl::StatusOr<std::unique_ptr<Buffer>> sin = Upload(table.sin);
  if (!sin.ok()) return sin.status();
  sin_ = *std::move(sin);
  return absl::OkStatus();
}

absl::Status Transformer::AllocateActivations() {
  const auto allocate = [&](std::unique_ptr<Buffer>& out, int64_t rows, int64_t cols) {
    absl::StatusOr<std::unique_ptr<Buffer>> buffer = backend_.Allocate(rows * cols * sizeof(float));
    if (!buffer.ok()) return buffer.status();
    out = *std::move(buffer);
    return absl::OkStatus();
  };
  const int64_t rows = backend_.DecodeRows(options_.max_batch_rows);
  const int64_t logit_rows = options_.max_logit_rows;
  absl::Status status = allocate(tokens_, rows, 1);
  status.Update(allocate(positions_, rows, 1));
  status.Update(allocate(x_, rows, config_.hidden_size));
  status.Update(allocate(normed_, rows, config_.hidden_size));
  status.Update(allocate(qkv_, rows, qkv_size()));
  status.Update(allocate(attended_, rows, q_size()));
  if (sharded()) status.Update(allocate(partial_, rows, config_.hidden_size));
  status.Update(allocate(row_index_, logit_rows, 1));
  status.Update(allocate(gathered_, logit_rows, config_.hidden_size));
  status.Update(allocate(gathered_normed_, logit_rows, config_.hidden_size));
  status.Update(allocate(logits_, logit_rows, config_.vocab_size));
  return status;
}

}  // namespace verbatim::model

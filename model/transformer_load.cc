// Loading of the weights, rotary tables and activations of a transformer.
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
  auto model = std::unique_ptr<Transformer>(new Transformer(backend, config, options));

  absl::StatusOr<std::unique_ptr<WeightMatrix>> embed = LoadMatrix(
      backend, checkpoint, {"embed"}, {.for_gemm = config.tied_embeddings, .for_embedding = true});
  if (!embed.ok()) return embed.status();
  model->embed_ = *std::move(embed);
  if (!config.tied_embeddings) {
    absl::StatusOr<std::unique_ptr<WeightMatrix>> head =
        LoadMatrix(backend, checkpoint, {"lm_head"});
    if (!head.ok()) return head.status();
    model->lm_head_ = *std::move(head);
  }
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
                        {.max_rows = options.max_batch_rows,
                         .capacity_factor = options.moe_capacity_factor,
                         .overflow = options.moe_overflow});
  if (!feed_forward.ok()) return feed_forward.status();
  model->feed_forward_ = *std::move(feed_forward);
  absl::Status status = model->BuildRopeTables();
  if (status.ok()) status = model->AllocateActivations();
  if (!status.ok()) return status;
  return model;
}

absl::Status Transformer::LoadLayer(const Checkpoint& checkpoint, int64_t index, Layer& layer) {
  const std::string prefix = absl::StrCat("layers.", index, ".");
  const auto matrix = [&](std::unique_ptr<WeightMatrix>& out, std::vector<std::string> names) {
    for (std::string& name : names) name = prefix + name;
    absl::StatusOr<std::unique_ptr<WeightMatrix>> loaded = LoadMatrix(backend_, checkpoint, names);
    if (!loaded.ok()) return loaded.status();
    out = *std::move(loaded);
    return absl::OkStatus();
  };
  const auto vector = [&](std::unique_ptr<Buffer>& out, std::vector<std::string> names) {
    std::vector<float> joined;
    for (const std::string& name : names) {
      absl::StatusOr<std::vector<float>> part = checkpoint.Vector(prefix + name);
      if (!part.ok()) return part.status();
      joined.insert(joined.end(), part->begin(), part->end());
    }
    absl::StatusOr<std::unique_ptr<Buffer>> uploaded = Upload(joined);
    if (!uploaded.ok()) return uploaded.status();
    out = *std::move(uploaded);
    return absl::OkStatus();
  };
  absl::Status status = vector(layer.attn_norm, {"attn_norm"});
  status.Update(vector(layer.ffn_norm, {"ffn_norm"}));
  status.Update(matrix(layer.qkv, {"q", "k", "v"}));
  status.Update(matrix(layer.o, {"o"}));
  if (config_.qkv_bias) status.Update(vector(layer.qkv_bias, {"q.bias", "k.bias", "v.bias"}));
  if (config_.qk_norm != QkNorm::kNone) {
    status.Update(vector(layer.q_norm, {"q_norm"}));
    status.Update(vector(layer.k_norm, {"k_norm"}));
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
  const int64_t rows = options_.max_batch_rows;
  const int64_t logit_rows = options_.max_logit_rows;
  absl::Status status = allocate(tokens_, rows, 1);
  status.Update(allocate(positions_, rows, 1));
  status.Update(allocate(x_, rows, config_.hidden_size));
  status.Update(allocate(normed_, rows, config_.hidden_size));
  status.Update(allocate(qkv_, rows, qkv_size()));
  status.Update(allocate(attended_, rows, q_size()));
  status.Update(allocate(row_index_, logit_rows, 1));
  status.Update(allocate(gathered_, logit_rows, config_.hidden_size));
  status.Update(allocate(gathered_normed_, logit_rows, config_.hidden_size));
  status.Update(allocate(logits_, logit_rows, config_.vocab_size));
  return status;
}

}  // namespace verbatim::model

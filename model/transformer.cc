// The forward pass of a dense decoder-only transformer (Llama, Mistral, Qwen2, Qwen3) over a batch
// of token rows.
#include "model/transformer.h"

#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/numerics/rope_table.h"

namespace verbatim::model {
namespace {

using kernels::ActivationType;
using kernels::Buffer;
using kernels::NumericMode;
using kernels::StoredMatrix;
using kernels::WeightMatrix;

float* Floats(const std::unique_ptr<Buffer>& buffer) {
  return buffer == nullptr ? nullptr : static_cast<float*>(buffer->data());
}

int32_t* Ints(const std::unique_ptr<Buffer>& buffer) {
  return static_cast<int32_t*>(buffer->data());
}

bool RoundsActivations(const NumericMode& mode) {
  return mode.policy == kernels::Policy::kThroughput && mode.activations == ActivationType::kBF16;
}

absl::StatusOr<std::unique_ptr<WeightMatrix>> LoadMatrix(
    kernels::Backend& backend, const Checkpoint& checkpoint, absl::Span<const std::string> names,
    const kernels::LoadMatrixOptions& options = {}) {
  std::vector<StoredMatrix> parts;
  for (const std::string& name : names) {
    absl::StatusOr<StoredMatrix> part = checkpoint.Matrix(name);
    if (!part.ok()) return part.status();
    parts.push_back(*part);
  }
  return backend.LoadMatrix(parts, options);
}

}  // namespace

std::string_view NameOf(Operation operation) {
  switch (operation) {
    case Operation::kEmbedding:
      return "embedding";
    case Operation::kAttnNorm:
      return "attention norm";
    case Operation::kQkv:
      return "qkv gemm";
    case Operation::kQkNorm:
      return "query and key norm";
    case Operation::kRope:
      return "rotary embedding";
    case Operation::kAttention:
      return "attention";
    case Operation::kAttnOutput:
      return "attention output gemm";
    case Operation::kFfnNorm:
      return "feed-forward norm";
    case Operation::kGateUp:
      return "gate and up gemm";
    case Operation::kSwiGlu:
      return "SwiGLU";
    case Operation::kDown:
      return "down gemm";
    case Operation::kFinalNorm:
      return "final norm";
    case Operation::kLogits:
      return "logits gemm";
  }
  return "unknown";
}

void ForwardBatch::Clear() {
  tokens.clear();
  positions.clear();
  spans.clear();
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
  absl::StatusOr<std::unique_ptr<Buffer>> uploaded = model->Upload(*norm);
  if (!uploaded.ok()) return uploaded.status();
  model->final_norm_ = *std::move(uploaded);

  model->layers_.resize(config.num_layers);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    absl::Status loaded = model->LoadLayer(checkpoint, i, model->layers_[i]);
    if (!loaded.ok()) return loaded;
  }
  absl::Status allocated = model->AllocateActivations();
  if (!allocated.ok()) return allocated;
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
  status.Update(matrix(layer.gate_up, {"gate", "up"}));
  status.Update(matrix(layer.down, {"down"}));
  if (config_.qkv_bias) status.Update(vector(layer.qkv_bias, {"q.bias", "k.bias", "v.bias"}));
  if (config_.qk_norm != QkNorm::kNone) {
    status.Update(vector(layer.q_norm, {"q_norm"}));
    status.Update(vector(layer.k_norm, {"k_norm"}));
  }
  return status;
}

absl::Status Transformer::AllocateActivations() {
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
  status.Update(allocate(gate_up_, rows, 2 * config_.intermediate_size));
  status.Update(allocate(act_, rows, config_.intermediate_size));
  status.Update(allocate(row_index_, logit_rows, 1));
  status.Update(allocate(gathered_, logit_rows, config_.hidden_size));
  status.Update(allocate(gathered_normed_, logit_rows, config_.hidden_size));
  status.Update(allocate(logits_, logit_rows, config_.vocab_size));
  return status;
}

absl::Status Transformer::Forward(const ForwardBatch& batch, const NumericMode& mode,
                                  kernels::KvCache& cache) {
  const int64_t rows = batch.rows();
  if (rows > options_.max_batch_rows || static_cast<int64_t>(batch.positions.size()) != rows) {
    return absl::InvalidArgumentError(absl::StrCat("forward: ", rows, " rows, ",
                                                   batch.positions.size(), " positions; at most ",
                                                   options_.max_batch_rows, " rows"));
  }
  absl::Status status =
      backend_.CopyToDevice(tokens_->data(), batch.tokens.data(), rows * sizeof(int32_t));
  status.Update(
      backend_.CopyToDevice(positions_->data(), batch.positions.data(), rows * sizeof(int32_t)));
  if (!status.ok()) return status;
  status = backend_.Embedding({.mode = mode,
                               .table = embed_.get(),
                               .tokens = Ints(tokens_),
                               .num_tokens = rows,
                               .y = Floats(x_)});
  if (!status.ok()) return status;
  Observe(Operation::kEmbedding, -1, Floats(x_), rows, config_.hidden_size);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    status = RunLayer(i, batch, mode, cache);
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("layer ", i, ": ", std::string(status.message())));
    }
  }
  last_rows_ = rows;
  return absl::OkStatus();
}

absl::Status Transformer::RunLayer(int64_t index, const ForwardBatch& batch,
                                   const NumericMode& mode, kernels::KvCache& cache) {
  const Layer& layer = layers_[index];
  const int64_t rows = batch.rows();
  const int64_t hidden = config_.hidden_size;
  const bool round = RoundsActivations(mode);
  const float eps = static_cast<float>(config_.rms_norm_eps);
  float* const x = Floats(x_);
  float* const normed = Floats(normed_);
  float* const qkv = Floats(qkv_);

  // Each line is one operation; the first failure wins.
  absl::Status status = backend_.RmsNorm({.mode = mode,
                                          .x = x,
                                          .x_stride = hidden,
                                          .y = normed,
                                          .y_stride = hidden,
                                          .weight = Floats(layer.attn_norm),
                                          .rows = rows,
                                          .cols = hidden,
                                          .eps = eps});
  if (!status.ok()) return status;
  Observe(Operation::kAttnNorm, index, normed, rows, hidden);
  status = backend_.Gemm({.mode = mode,
                          .weight = layer.qkv.get(),
                          .tokens = rows,
                          .x = normed,
                          .x_stride = hidden,
                          .y = qkv,
                          .y_stride = qkv_size(),
                          .bias = Floats(layer.qkv_bias),
                          .round_output = round});
  if (!status.ok()) return status;
  Observe(Operation::kQkv, index, qkv, rows, qkv_size());
  if (config_.qk_norm != QkNorm::kNone) {
    status = backend_.RmsNorm({.mode = mode,
                               .x = qkv,
                               .x_stride = qkv_size(),
                               .y = qkv,
                               .y_stride = qkv_size(),
                               .weight = Floats(layer.q_norm),
                               .rows = rows,
                               .groups = config_.num_heads,
                               .cols = config_.head_dim,
                               .eps = eps});
    if (!status.ok()) return status;
    float* const keys = qkv + q_size();
    status = backend_.RmsNorm({.mode = mode,
                               .x = keys,
                               .x_stride = qkv_size(),
                               .y = keys,
                               .y_stride = qkv_size(),
                               .weight = Floats(layer.k_norm),
                               .rows = rows,
                               .groups = config_.num_kv_heads,
                               .cols = config_.head_dim,
                               .eps = eps});
    if (!status.ok()) return status;
    Observe(Operation::kQkNorm, index, qkv, rows, qkv_size());
  }
  status = backend_.Rope({.mode = mode,
                          .qkv = qkv,
                          .row_stride = qkv_size(),
                          .tokens = rows,
                          .num_heads = config_.num_heads,
                          .num_kv_heads = config_.num_kv_heads,
                          .head_dim = config_.head_dim,
                          .interleaved = config_.rope_interleaved,
                          .positions = Ints(positions_),
                          .cos_table = Floats(cos_),
                          .sin_table = Floats(sin_)});
  if (!status.ok()) return status;
  Observe(Operation::kRope, index, qkv, rows, qkv_size());
  status = backend_.KvWrite({.mode = mode,
                             .cache = &cache,
                             .layer = index,
                             .k = qkv + q_size(),
                             .v = qkv + q_size() + kv_size(),
                             .row_stride = qkv_size(),
                             .spans = batch.spans});
  if (!status.ok()) return status;
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  status = backend_.Attention({.mode = mode,
                               .cache = &cache,
                               .layer = index,
                               .q = qkv,
                               .q_stride = qkv_size(),
                               .y = Floats(attended_),
                               .y_stride = q_size(),
                               .num_heads = config_.num_heads,
                               .scale = static_cast<float>(scale),
                               .spans = batch.spans});
  if (!status.ok()) return status;
  Observe(Operation::kAttention, index, Floats(attended_), rows, q_size());
  status = backend_.Gemm({.mode = mode,
                          .weight = layer.o.get(),
                          .tokens = rows,
                          .x = Floats(attended_),
                          .x_stride = q_size(),
                          .y = x,
                          .y_stride = hidden,
                          .residual = x,
                          .round_output = round});
  if (!status.ok()) return status;
  Observe(Operation::kAttnOutput, index, x, rows, hidden);
  status = backend_.RmsNorm({.mode = mode,
                             .x = x,
                             .x_stride = hidden,
                             .y = normed,
                             .y_stride = hidden,
                             .weight = Floats(layer.ffn_norm),
                             .rows = rows,
                             .cols = hidden,
                             .eps = eps});
  if (!status.ok()) return status;
  Observe(Operation::kFfnNorm, index, normed, rows, hidden);
  status = backend_.Gemm({.mode = mode,
                          .weight = layer.gate_up.get(),
                          .tokens = rows,
                          .x = normed,
                          .x_stride = hidden,
                          .y = Floats(gate_up_),
                          .y_stride = 2 * config_.intermediate_size,
                          .round_output = round});
  if (!status.ok()) return status;
  Observe(Operation::kGateUp, index, Floats(gate_up_), rows, 2 * config_.intermediate_size);
  status = backend_.SwiGlu({.mode = mode,
                            .gate_up = Floats(gate_up_),
                            .y = Floats(act_),
                            .tokens = rows,
                            .cols = config_.intermediate_size});
  if (!status.ok()) return status;
  Observe(Operation::kSwiGlu, index, Floats(act_), rows, config_.intermediate_size);
  status = backend_.Gemm({.mode = mode,
                          .weight = layer.down.get(),
                          .tokens = rows,
                          .x = Floats(act_),
                          .x_stride = config_.intermediate_size,
                          .y = x,
                          .y_stride = hidden,
                          .residual = x,
                          .round_output = round});
  if (!status.ok()) return status;
  Observe(Operation::kDown, index, x, rows, hidden);
  return absl::OkStatus();
}

absl::StatusOr<const float*> Transformer::ComputeLogits(absl::Span<const int32_t> rows,
                                                        const NumericMode& mode) {
  const int64_t count = static_cast<int64_t>(rows.size());
  const int64_t hidden = config_.hidden_size;
  if (count > options_.max_logit_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("logits: ", count, " rows; at most ", options_.max_logit_rows));
  }
  absl::Status status =
      backend_.CopyToDevice(row_index_->data(), rows.data(), count * sizeof(int32_t));
  if (!status.ok()) return status;
  status = backend_.GatherRows({.x = Floats(x_),
                                .rows = last_rows_,
                                .cols = hidden,
                                .index = Ints(row_index_),
                                .num_rows = count,
                                .y = Floats(gathered_)});
  if (!status.ok()) return status;
  status = backend_.RmsNorm({.mode = mode,
                             .x = Floats(gathered_),
                             .x_stride = hidden,
                             .y = Floats(gathered_normed_),
                             .y_stride = hidden,
                             .weight = Floats(final_norm_),
                             .rows = count,
                             .cols = hidden,
                             .eps = static_cast<float>(config_.rms_norm_eps)});
  if (!status.ok()) return status;
  Observe(Operation::kFinalNorm, -1, Floats(gathered_normed_), count, hidden);
  status = backend_.Gemm({.mode = mode,
                          .weight = lm_head_ ? lm_head_.get() : embed_.get(),
                          .tokens = count,
                          .x = Floats(gathered_normed_),
                          .x_stride = hidden,
                          .y = Floats(logits_),
                          .y_stride = config_.vocab_size});
  if (!status.ok()) return status;
  Observe(Operation::kLogits, -1, Floats(logits_), count, config_.vocab_size);
  return Floats(logits_);
}

std::vector<std::pair<std::string, std::string>> Transformer::GemmKernels(const NumericMode& mode,
                                                                          int64_t rows,
                                                                          bool logits) const {
  if (logits) {
    const WeightMatrix& head = lm_head_ ? *lm_head_ : *embed_;
    return {{"lm_head", backend_.GemmKernel(mode, head, rows)}};
  }
  // Runs of equal names over the layers; one run needs no length.
  const auto over_layers = [&](std::unique_ptr<WeightMatrix> Layer::*matrix) {
    std::vector<std::pair<std::string, int>> runs;
    for (const Layer& layer : layers_) {
      std::string kernel = backend_.GemmKernel(mode, *(layer.*matrix), rows);
      if (runs.empty() || runs.back().first != kernel) runs.emplace_back(std::move(kernel), 0);
      ++runs.back().second;
    }
    if (runs.size() == 1) return runs[0].first;
    return absl::StrJoin(runs, "+", [](std::string* out, const auto& run) {
      absl::StrAppend(out, run.first, "*", run.second);
    });
  };
  return {{"qkv", over_layers(&Layer::qkv)},
          {"o", over_layers(&Layer::o)},
          {"gate_up", over_layers(&Layer::gate_up)},
          {"down", over_layers(&Layer::down)}};
}

int64_t Transformer::weight_bytes() const {
  const auto size = [](const auto& owned) {
    return owned == nullptr ? int64_t{0} : static_cast<int64_t>(owned->size_bytes());
  };
  int64_t total = size(embed_) + size(lm_head_) + size(final_norm_);
  for (const Layer& layer : layers_) {
    total += size(layer.attn_norm) + size(layer.ffn_norm) + size(layer.q_norm) + size(layer.k_norm);
    total += size(layer.qkv_bias) + size(layer.qkv) + size(layer.o) + size(layer.gate_up) +
             size(layer.down);
  }
  return total;
}

}  // namespace verbatim::model

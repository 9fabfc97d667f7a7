// The forward pass of a decoder-only transformer over a batch of token rows.
#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/gemm_kernel_runs.h"
#include "model/load_matrix.h"
#include "model/step_announcement.h"

namespace verbatim::model {
namespace {

using kernels::Buffer;
using kernels::NumericMode;
using kernels::WeightMatrix;

float* Floats(const std::unique_ptr<Buffer>& buffer) {
  return buffer == nullptr ? nullptr : static_cast<float*>(buffer->data());
}

int32_t* Ints(const std::unique_ptr<Buffer>& buffer) {
  return static_cast<int32_t*>(buffer->data());
}

}  // namespace

void ForwardBatch::Clear() {
  tokens.clear();
  positions.clear();
  spans.clear();
  capacity_exempt.clear();
  forced_routing = nullptr;
}

bool ForwardBatch::IsDecode() const {
  if (spans.size() != tokens.size() || spans.empty()) return false;
  for (size_t i = 0; i < spans.size(); ++i) {
    if (spans[i].num_rows != 1 || spans[i].first_row != static_cast<int32_t>(i)) return false;
  }
  return true;
}

absl::Status Transformer::FailEverywhere(const absl::Status& status) {
  if (status.ok() || !sharded()) return status;
  options_.communicator->Abort(status);
  return options_.communicator->failure();
}

absl::Status Transformer::CheckStep(const ForwardBatch& batch, const NumericMode& mode) const {
  const int64_t rows = batch.rows();
  if (rows > options_.max_batch_rows || static_cast<int64_t>(batch.positions.size()) != rows) {
    return absl::InvalidArgumentError(absl::StrCat("forward: ", rows, " rows, ",
                                                   batch.positions.size(), " positions; at most ",
                                                   options_.max_batch_rows, " rows"));
  }
  if (!sharded()) return absl::OkStatus();
  if (batch.forced_routing != nullptr) {
    return absl::InvalidArgumentError("forced_routing: not with several ranks");
  }
  if (std::string refusal = RefusalOf(mode.policy); !refusal.empty()) {
    return absl::FailedPreconditionError(refusal);
  }
  return absl::OkStatus();
}

absl::Status Transformer::Forward(const ForwardBatch& batch, const NumericMode& mode,
                                  kernels::KvCache& cache) {
  if (absl::Status status = CheckStep(batch, mode); !status.ok()) return status;
  const DecodeTerms terms = TermsOf(batch, mode, cache);
  if (leads()) {
    absl::Status status = options_.communicator->Announce(EncodeForward(batch, mode, terms));
    if (!status.ok()) return status;
  }
  return FailEverywhere(ForwardShard(batch, mode, cache, terms));
}

absl::Status Transformer::ForwardShard(const ForwardBatch& batch, const NumericMode& mode,
                                       kernels::KvCache& cache, const DecodeTerms& terms) {
  const bool decode = terms.rows > 0;
  const int64_t rows = decode ? terms.rows : batch.rows();
  absl::Status status = UploadRows(batch, rows);
  status.Update(feed_forward_->Begin(batch.rows(), batch.capacity_exempt, batch.forced_routing,
                                     decode ? rows : 0));
  if (!status.ok()) return status;
  const auto layers = [&] { return RunLayers(batch, rows, mode, cache); };
  status = decode ? backend_.RunDecode(StepOf(batch, mode, cache, terms), layers) : layers();
  if (!status.ok()) return status;
  feed_forward_->End();
  last_rows_ = batch.rows();
  return absl::OkStatus();
}

absl::Status Transformer::UploadRows(const ForwardBatch& batch, int64_t rows) {
  const auto upload = [&](const std::unique_ptr<Buffer>& to, const std::vector<int32_t>& values) {
    const size_t size_bytes = static_cast<size_t>(rows) * sizeof(int32_t);
    if (rows == batch.rows()) return backend_.CopyToDevice(to->data(), values.data(), size_bytes);
    padded_.assign(static_cast<size_t>(rows), 0);  // a token and a position that exist
    std::copy(values.begin(), values.end(), padded_.begin());
    return backend_.CopyToDevice(to->data(), padded_.data(), size_bytes);
  };
  absl::Status status = upload(tokens_, batch.tokens);
  status.Update(upload(positions_, batch.positions));
  return status;
}

absl::Status Transformer::RunLayers(const ForwardBatch& batch, int64_t rows,
                                    const NumericMode& mode, kernels::KvCache& cache) {
  absl::Status status = backend_.Embedding({.mode = mode,
                                            .table = embed_.get(),
                                            .tokens = Ints(tokens_),
                                            .num_tokens = rows,
                                            .scale = embedding_scale(),
                                            .y = Floats(x_)});
  if (!status.ok()) return status;
  Observe(Operation::kEmbedding, -1, Floats(x_), batch.rows(), config_.hidden_size);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    status = RunLayer(i, batch, rows, mode, cache);
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("layer ", i, ": ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

absl::Status Transformer::NormHeads(const Layer& layer, const NumericMode& mode, int64_t rows) {
  const bool all = config_.qk_norm == QkNorm::kAll;
  const auto norm = [&](float* x, const std::unique_ptr<Buffer>& weight, int64_t heads) {
    return backend_.RmsNorm({.mode = mode,
                             .x = x,
                             .x_stride = qkv_size(),
                             .y = x,
                             .y_stride = qkv_size(),
                             .weight = Floats(weight),
                             .rows = rows,
                             .groups = all ? 1 : heads,
                             .cols = all ? heads * config_.head_dim : config_.head_dim,
                             .eps = static_cast<float>(config_.rms_norm_eps)});
  };
  absl::Status status = norm(Floats(qkv_), layer.q_norm, local_.num_heads);
  if (!status.ok()) return status;
  return norm(Floats(qkv_) + q_size(), layer.k_norm, local_.num_kv_heads);
}

absl::Status Transformer::ProjectOutput(const Layer& layer, const NumericMode& mode, int64_t rows) {
  const int64_t hidden = config_.hidden_size;
  const bool round = RoundsActivations(mode);
  float* const x = Floats(x_);
  absl::Status status = backend_.Gemm({.mode = mode,
                                       .weight = layer.o.get(),
                                       .tokens = rows,
                                       .x = Floats(attended_),
                                       .x_stride = q_size(),
                                       .y = sharded() ? Floats(partial_) : x,
                                       .y_stride = hidden,
                                       .residual = sharded() ? nullptr : x,
                                       .round_output = round && !sharded()});
  if (!status.ok() || !sharded()) return status;
  return sums_->Join(mode, Floats(partial_), rows * hidden, /*residual=*/x, x, round);
}

absl::Status Transformer::RunLayer(int64_t index, const ForwardBatch& batch, int64_t rows,
                                   const NumericMode& mode, kernels::KvCache& cache) {
  const Layer& layer = layers_[index];
  const int64_t hidden = config_.hidden_size;
  const bool round = RoundsActivations(mode);
  const float eps = residual_eps();
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
  Observe(Operation::kAttnNorm, index, normed, batch.rows(), hidden);
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
  Observe(Operation::kQkv, index, qkv, batch.rows(), qkv_size());
  if (config_.qk_norm != QkNorm::kNone) {
    status = NormHeads(layer, mode, rows);
    if (!status.ok()) return status;
    Observe(Operation::kQkNorm, index, qkv, batch.rows(), qkv_size());
  }
  status = backend_.Rope({.mode = mode,
                          .qkv = qkv,
                          .row_stride = qkv_size(),
                          .tokens = rows,
                          .num_heads = local_.num_heads,
                          .num_kv_heads = local_.num_kv_heads,
                          .head_dim = config_.head_dim,
                          .interleaved = config_.rope_interleaved,
                          .positions = Ints(positions_),
                          .cos_table = Floats(cos_),
                          .sin_table = Floats(sin_)});
  if (!status.ok()) return status;
  Observe(Operation::kRope, index, qkv, batch.rows(), qkv_size());
  status = backend_.KvWrite({.mode = mode,
                             .cache = &cache,
                             .layer = index,
                             .k = qkv + q_size(),
                             .v = qkv + q_size() + kv_size(),
                             .row_stride = qkv_size(),
                             .spans = batch.spans});
  if (!status.ok()) return status;
  const double scale = config_.attention_multiplier != 0
                           ? config_.attention_multiplier
                           : 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  status = backend_.Attention({.mode = mode,
                               .cache = &cache,
                               .layer = index,
                               .q = qkv,
                               .q_stride = qkv_size(),
                               .y = Floats(attended_),
                               .y_stride = q_size(),
                               .num_heads = local_.num_heads,
                               .scale = static_cast<float>(scale),
                               .spans = batch.spans});
  if (!status.ok()) return status;
  Observe(Operation::kAttention, index, Floats(attended_), batch.rows(), q_size());
  status = ProjectOutput(layer, mode, rows);
  if (!status.ok()) return status;
  Observe(Operation::kAttnOutput, index, x, batch.rows(), hidden);
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
  Observe(Operation::kFfnNorm, index, normed, batch.rows(), hidden);
  return feed_forward_->Run(index, mode, normed, x, observer_);
}

absl::StatusOr<const float*> Transformer::ComputeLogits(absl::Span<const int32_t> rows,
                                                        const NumericMode& mode) {
  const int64_t count = static_cast<int64_t>(rows.size());
  if (count > options_.max_logit_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("logits: ", count, " rows; at most ", options_.max_logit_rows));
  }
  if (leads()) {
    absl::Status status = options_.communicator->Announce(EncodeLogits(rows, mode));
    if (!status.ok()) return status;
  }
  absl::Status status = ComputeLogitsShard(rows, mode);
  // Rank 0 waits when it samples. The others wait here for what could go wrong on their devices:
  // rank 0 would wait for ever for what they do not send.
  if (status.ok() && plan_.rank != 0) status = backend_.Synchronize();
  if (status = FailEverywhere(status); !status.ok()) return status;
  return Floats(logits_);
}

absl::Status Transformer::ComputeLogitsShard(absl::Span<const int32_t> rows,
                                             const NumericMode& mode) {
  const int64_t count = static_cast<int64_t>(rows.size());
  const int64_t hidden = config_.hidden_size;
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
                             .eps = residual_eps()});
  if (!status.ok()) return status;
  Observe(Operation::kFinalNorm, -1, Floats(gathered_normed_), count, hidden);
  status = backend_.Gemm({.mode = mode,
                          .weight = lm_head_ ? lm_head_.get() : embed_.get(),
                          .tokens = count,
                          .x = Floats(gathered_normed_),
                          .x_stride = hidden,
                          .y = Floats(logits_),
                          .y_stride = plan_.rank == 0 ? config_.vocab_size : plan_.vocab.size()});
  if (!status.ok()) return status;
  if (sharded()) status = GatherLogits(count);
  if (!status.ok() || plan_.rank != 0) return status;
  Observe(Operation::kLogits, -1, Floats(logits_), count, config_.vocab_size);
  return absl::OkStatus();
}

absl::Status Transformer::GatherLogits(int64_t rows) {
  if (rows == 0) return absl::OkStatus();
  if (plan_.rank != 0) {
    const parallel::Block mine = {.peer = 0,
                                  .data = Floats(logits_),
                                  .rows = rows,
                                  .cols = plan_.vocab.size(),
                                  .stride = plan_.vocab.size()};
    return options_.communicator->Exchange({mine}, {});
  }
  std::vector<parallel::Block> theirs;
  for (int rank = 1; rank < plan_.degree; ++rank) {
    const absl::StatusOr<ShardPlan> plan = PlanShard(config_, rank, plan_.degree);
    if (!plan.ok()) return plan.status();
    theirs.push_back({.peer = rank,
                      .data = Floats(logits_) + plan->vocab.begin,
                      .rows = rows,
                      .cols = plan->vocab.size(),
                      .stride = config_.vocab_size});
  }
  return options_.communicator->Exchange({}, theirs);
}

std::vector<std::pair<std::string, std::string>> Transformer::GemmKernels(const NumericMode& mode,
                                                                          int64_t rows,
                                                                          bool logits) const {
  if (logits) {
    const WeightMatrix& head = lm_head_ ? *lm_head_ : *embed_;
    return {{"lm_head", backend_.GemmKernel(mode, head, rows)}};
  }
  const auto over_layers = [&](std::unique_ptr<WeightMatrix> Layer::*matrix) {
    return GemmKernelRuns(layers_, [&](const Layer& layer) {
      return backend_.GemmKernel(mode, *(layer.*matrix), rows);
    });
  };
  std::vector<std::pair<std::string, std::string>> kernels = {{"qkv", over_layers(&Layer::qkv)},
                                                              {"o", over_layers(&Layer::o)}};
  for (auto& kernel : feed_forward_->GemmKernels(mode, rows)) kernels.push_back(std::move(kernel));
  return kernels;
}

int64_t Transformer::weight_bytes() const {
  const auto size = [](const auto& owned) {
    return owned == nullptr ? int64_t{0} : static_cast<int64_t>(owned->size_bytes());
  };
  int64_t total = size(embed_) + size(lm_head_) + size(final_norm_);
  for (const Layer& layer : layers_) {
    total += size(layer.attn_norm) + size(layer.ffn_norm) + size(layer.q_norm) + size(layer.k_norm);
    total += size(layer.qkv_bias) + size(layer.qkv) + size(layer.o);
  }
  return total + feed_forward_->weight_bytes();
}

}  // namespace verbatim::model

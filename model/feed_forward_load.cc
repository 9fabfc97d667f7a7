// Loading of the feed-forward weights, their working memory, and what can be told of them.
#include <algorithm>
#include <functional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/ops/block_formats.h"
#include "kernels/ops/random_matrix.h"
#include "model/feed_forward.h"
#include "model/gemm_kernel_runs.h"
#include "model/load_matrix.h"

namespace verbatim::model {

using kernels::Buffer;
using kernels::StoredMatrix;
using kernels::WeightMatrix;

absl::StatusOr<std::unique_ptr<FeedForward>> FeedForward::Load(kernels::Backend& backend,
                                                               const Checkpoint& checkpoint,
                                                               const FeedForwardOptions& options) {
  auto loaded =
      std::unique_ptr<FeedForward>(new FeedForward(backend, checkpoint.config(), options));
  loaded->layers_.resize(checkpoint.config().num_layers);
  for (int64_t i = 0; i < checkpoint.config().num_layers; ++i) {
    absl::Status status = loaded->LoadLayer(checkpoint, i);
    if (!status.ok()) return status;
  }
  absl::Status allocated = loaded->Allocate();
  if (!allocated.ok()) return allocated;
  return loaded;
}

absl::Status FeedForward::LoadNetwork(const Checkpoint& checkpoint, const std::string& prefix,
                                      Range inner, const kernels::LoadMatrixOptions& options,
                                      Network& network) {
  absl::StatusOr<std::unique_ptr<WeightMatrix>> gate_up = LoadRows(
      backend_, checkpoint,
      {RowsOfMatrix{prefix + "gate", {inner}}, RowsOfMatrix{prefix + "up", {inner}}}, options);
  if (!gate_up.ok()) return gate_up.status();
  network.gate_up = *std::move(gate_up);
  kernels::LoadMatrixOptions down_options = options;
  down_options.shard_depth = std::max(options_.plan.shard_depth(), 0);
  absl::StatusOr<std::unique_ptr<WeightMatrix>> down =
      LoadColumns(backend_, checkpoint, prefix + "down", inner, down_options, slices_);
  if (!down.ok()) return down.status();
  network.down = *std::move(down);
  return absl::OkStatus();
}

absl::Status FeedForward::LoadDecoded(const Checkpoint& checkpoint, const std::string& name,
                                      DecodedMatrix& decoded) {
  absl::StatusOr<StoredMatrix> stored = checkpoint.Matrix(name);
  if (!stored.ok()) return stored.status();
  std::vector<std::byte> made;
  *stored = kernels::WithBytes(*stored, &made);
  decoded.values.resize(static_cast<size_t>(stored->rows * stored->cols));
  for (int64_t r = 0; r < stored->rows; ++r) {
    kernels::DecodeRow(stored->dtype, stored->data + r * stored->row_bytes(), stored->cols,
                       decoded.values.data() + r * stored->cols);
  }
  const StoredMatrix matrix = {.dtype = kernels::DType::kF32,
                               .rows = stored->rows,
                               .cols = stored->cols,
                               .data = reinterpret_cast<const std::byte*>(decoded.values.data())};
  absl::StatusOr<std::unique_ptr<WeightMatrix>> loaded = backend_.LoadMatrix({matrix}, {});
  if (!loaded.ok()) return loaded.status();
  decoded.matrix = *std::move(loaded);
  return absl::OkStatus();
}

absl::Status FeedForward::LoadLayer(const Checkpoint& checkpoint, int64_t index) {
  const MoeConfig& moe = config_.moe;
  Layer& layer = layers_[index];
  const std::string prefix = absl::StrCat("layers.", index, ".");
  if (!moe.IsMoe(index)) {
    return LoadNetwork(checkpoint, prefix, options_.plan.intermediate, {}, layer.dense);
  }
  layer.moe_index = num_moe_layers_++;
  absl::Status status = LoadDecoded(checkpoint, prefix + "router", layer.router);
  if (moe.shared_gate) {
    status.Update(LoadDecoded(checkpoint, prefix + "shared_gate", layer.shared_gate));
  }
  if (moe.shared_intermediate_size > 0) {
    status.Update(LoadNetwork(checkpoint, prefix + "shared.", options_.plan.shared_intermediate, {},
                              layer.shared));
  }
  layer.experts.resize(static_cast<size_t>(moe.num_experts));
  for (int64_t e = 0; e < moe.num_experts && status.ok(); ++e) {
    status =
        LoadNetwork(checkpoint, absl::StrCat(prefix, "experts.", e, "."),
                    options_.plan.expert_intermediate, {.for_experts = true}, layer.experts[e]);
    layer.gate_up.push_back(layer.experts[e].gate_up.get());
    layer.down.push_back(layer.experts[e].down.get());
  }
  return status;
}

absl::Status FeedForward::Allocate() {
  const MoeConfig& moe = config_.moe;
  const auto allocate = [&](std::unique_ptr<Buffer>& out, int64_t elements) {
    absl::StatusOr<std::unique_ptr<Buffer>> buffer = backend_.Allocate(elements * sizeof(float));
    if (!buffer.ok()) return buffer.status();
    out = *std::move(buffer);
    return absl::OkStatus();
  };
  const int64_t rows = options_.max_rows;
  const int64_t num_layers = static_cast<int64_t>(layers_.size());
  int64_t inner = num_moe_layers_ < num_layers ? rows * config_.intermediate_size : 0;
  absl::Status status;
  if (num_moe_layers_ > 0) {
    const int64_t slots = rows * moe.experts_per_token;
    inner = std::max({inner, slots * moe.intermediate_size, rows * moe.shared_intermediate_size});
    status.Update(allocate(logits_, rows * moe.num_experts));
    status.Update(allocate(weights_, slots));
    status.Update(allocate(expert_rows_, slots * config_.hidden_size));
    if (moe.shared_intermediate_size > 0) {
      status.Update(allocate(shared_out_, rows * config_.hidden_size));
    }
    if (moe.shared_gate) status.Update(allocate(shared_gate_, rows));
    static_assert(sizeof(int32_t) == sizeof(float));
    status.Update(allocate(offsets_, moe.num_experts + 1));
    static_assert(sizeof(kernels::MoeStepLimits) == 2 * sizeof(float));
    status.Update(allocate(limits_, 2));
    const std::vector<int64_t> zeros(static_cast<size_t>(num_moe_layers_ * (moe.num_experts + 2)));
    status.Update(allocate(totals_, 2 * static_cast<int64_t>(zeros.size())));
    if (!status.ok()) return status;
    status = backend_.CopyToDevice(totals_->data(), zeros.data(), zeros.size() * sizeof(int64_t));
    status.Update(allocate(token_of_, slots));
    status.Update(allocate(place_of_, slots));
    status.Update(allocate(experts_, num_moe_layers_ * slots));
    if (options_.capacity_factor != 0) {
      status.Update(allocate(wanted_, num_moe_layers_ * slots));
      status.Update(allocate(exempt_, rows));
    }
  }
  status.Update(allocate(gate_up_, 2 * inner));
  status.Update(allocate(act_, inner));
  if (options_.sums != nullptr) {
    status.Update(allocate(partial_, rows * config_.hidden_size));
  }
  return status;
}

std::vector<std::pair<std::string, std::string>> FeedForward::GemmKernels(
    const kernels::NumericMode& mode, int64_t rows) const {
  // In THROUGHPUT the kernel of an expert follows from the number of its tokens.
  constexpr char kByExpert[] = "by tokens of each expert";
  const bool strong = kernels::IsStrong(mode.policy);
  std::vector<std::pair<std::string, std::string>> kernels;
  const auto add = [&](const char* name, const std::function<std::string(const Layer&)>& of) {
    kernels.emplace_back(name, GemmKernelRuns(layers_, of));
  };
  const auto in_mode = [&](const kernels::NumericMode& its_mode,
                           const std::unique_ptr<WeightMatrix>& matrix) {
    return matrix == nullptr ? std::string("none") : backend_.GemmKernel(its_mode, *matrix, rows);
  };
  const auto of = [&](const std::unique_ptr<WeightMatrix>& matrix) {
    return in_mode(mode, matrix);
  };
  if (num_moe_layers_ < static_cast<int64_t>(layers_.size())) {
    add("gate_up", [&](const Layer& layer) { return of(layer.dense.gate_up); });
    add("down", [&](const Layer& layer) { return of(layer.dense.down); });
  }
  if (num_moe_layers_ == 0) return kernels;
  add("router", [&](const Layer& layer) { return in_mode(RouterMode(mode), layer.router.matrix); });
  const auto of_experts = [&](const Layer& layer, std::unique_ptr<WeightMatrix> Network::*matrix) {
    if (layer.experts.empty()) return std::string("none");
    return strong ? of(layer.experts[0].*matrix) : std::string(kByExpert);
  };
  add("experts_gate_up", [&](const Layer& layer) { return of_experts(layer, &Network::gate_up); });
  add("experts_down", [&](const Layer& layer) { return of_experts(layer, &Network::down); });
  if (config_.moe.shared_intermediate_size > 0) {
    add("shared_gate_up", [&](const Layer& layer) { return of(layer.shared.gate_up); });
    add("shared_down", [&](const Layer& layer) { return of(layer.shared.down); });
  }
  return kernels;
}

std::vector<std::pair<std::string, std::string>> FeedForward::ExpertKernels(
    const kernels::NumericMode& mode, int64_t tokens) const {
  if (num_moe_layers_ == 0) return {};
  const auto of = [&](std::unique_ptr<WeightMatrix> Network::*matrix) {
    return GemmKernelRuns(layers_, [&](const Layer& layer) {
      if (layer.experts.empty()) return std::string("none");
      // Experts of a layer may be stored differently.
      std::set<std::string> names;
      for (const Network& expert : layer.experts) {
        names.insert(backend_.GemmKernel(mode, *(expert.*matrix), tokens));
      }
      return absl::StrJoin(names, " or ");
    });
  };
  return {{"expert_gate_up", of(&Network::gate_up)}, {"expert_down", of(&Network::down)}};
}

int64_t FeedForward::weight_bytes() const {
  const auto size = [](const Network& network) {
    const auto of = [](const std::unique_ptr<WeightMatrix>& matrix) {
      return matrix == nullptr ? int64_t{0} : static_cast<int64_t>(matrix->size_bytes());
    };
    return of(network.gate_up) + of(network.down);
  };
  int64_t total = 0;
  for (const Layer& layer : layers_) {
    total += size(layer.dense) + size(layer.shared);
    for (const Network& expert : layer.experts) total += size(expert);
    for (const DecodedMatrix* decoded : {&layer.router, &layer.shared_gate}) {
      if (decoded->matrix != nullptr) total += static_cast<int64_t>(decoded->matrix->size_bytes());
    }
  }
  return total;
}

}  // namespace verbatim::model

// The feed-forward part of every layer: a SwiGLU network, or a mixture of experts.
#include "model/feed_forward.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/load_matrix.h"

namespace verbatim::model {
namespace {

using kernels::Buffer;
using kernels::NumericMode;

float* Floats(const std::unique_ptr<Buffer>& buffer) {
  return buffer == nullptr ? nullptr : static_cast<float*>(buffer->data());
}

int32_t* Ints(const std::unique_ptr<Buffer>& buffer) {
  return buffer == nullptr ? nullptr : static_cast<int32_t*>(buffer->data());
}

void Show(ForwardObserver* observer, Operation operation, int64_t layer, const float* data,
          int64_t rows, int64_t cols) {
  if (observer != nullptr) observer->OnOutput({operation, layer, data, rows, cols, cols});
}

}  // namespace

NumericMode FeedForward::RouterMode(const NumericMode& mode) const {
  if (!kernels::IsStrong(mode.policy) && options_.sums == nullptr) return {.policy = mode.policy};
  return {.policy = kernels::Policy::kPortable};
}

absl::Status FeedForward::Begin(int64_t rows, absl::Span<const uint8_t> exempt,
                                const ForcedRouting* forced, int64_t decode_rows) {
  const int64_t computed = decode_rows > 0 ? decode_rows : rows;
  if (rows < 0 || computed < rows || computed > options_.max_rows) {
    return absl::InvalidArgumentError(absl::StrCat("feed-forward: ", rows, " rows, ", computed,
                                                   " computed; at most ", options_.max_rows));
  }
  if (!exempt.empty() && static_cast<int64_t>(exempt.size()) != rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("capacity_exempt has ", exempt.size(), " entries for ", rows, " rows"));
  }
  if (absl::Status checked = CheckForced(rows, forced); !checked.ok()) return checked;
  rows_ = rows;
  computed_rows_ = computed;
  is_decode_ = decode_rows > 0;
  forced_ = forced;
  capacity_ = Capacity(rows, exempt);
  has_exempt_ = false;
  pending_rows_ = fetched_rows_ = 0;
  if (num_moe_layers_ == 0) return absl::OkStatus();
  if (capacity_ != 0) {
    // Equal decode steps have equal parameters.
    has_exempt_ = is_decode_ || std::count(exempt.begin(), exempt.end(), uint8_t{0}) !=
                                    static_cast<int64_t>(exempt.size());
  }
  absl::Status status;
  if (is_decode_) {
    const kernels::MoeStepLimits limits = {.tokens = static_cast<int32_t>(rows),
                                           .capacity = static_cast<int32_t>(capacity_)};
    status = backend_.CopyToDevice(limits_->data(), &limits, sizeof(limits));
  }
  if (!has_exempt_ || !status.ok()) return status;
  if (exempt.empty()) {
    const std::vector<uint8_t> none(static_cast<size_t>(rows));
    return backend_.CopyToDevice(exempt_->data(), none.data(), none.size());
  }
  return backend_.CopyToDevice(exempt_->data(), exempt.data(), exempt.size());
}

int64_t FeedForward::Capacity(int64_t rows, absl::Span<const uint8_t> exempt) const {
  const int64_t limited =
      rows - (exempt.size() - std::count(exempt.begin(), exempt.end(), uint8_t{0}));
  if (num_moe_layers_ == 0 || options_.capacity_factor == 0 || limited == 0) return 0;
  const double capacity = std::ceil(options_.capacity_factor * static_cast<double>(limited) *
                                    static_cast<double>(config_.moe.experts_per_token) /
                                    static_cast<double>(config_.moe.num_experts));
  // No expert can get more tokens than there are, so a huge factor is the same as that many.
  return static_cast<int64_t>(std::clamp(capacity, 1.0, static_cast<double>(limited)));
}

absl::Status FeedForward::Run(int64_t layer, const NumericMode& mode, const float* normed, float* x,
                              ForwardObserver* observer) {
  const Layer& weights = layers_[layer];
  if (weights.moe_index < 0) return RunDense(weights, layer, mode, normed, x, observer);
  return RunMoe(weights, layer, mode, normed, x, observer);
}

absl::Status FeedForward::RunNetwork(const Network& network, int64_t inner, const NumericMode& mode,
                                     const float* normed, const float* residual, float* y,
                                     ForwardObserver* observer, int64_t index) {
  const int64_t hidden = config_.hidden_size;
  const bool round = RoundsActivations(mode);
  absl::Status status = backend_.Gemm({.mode = mode,
                                       .weight = network.gate_up.get(),
                                       .tokens = computed_rows_,
                                       .x = normed,
                                       .x_stride = hidden,
                                       .y = Floats(gate_up_),
                                       .y_stride = 2 * inner,
                                       .round_output = round});
  if (!status.ok()) return status;
  Show(observer, Operation::kGateUp, index, Floats(gate_up_), rows_, 2 * inner);
  status = backend_.SwiGlu({.mode = mode,
                            .gate_up = Floats(gate_up_),
                            .y = Floats(act_),
                            .tokens = computed_rows_,
                            .cols = inner});
  if (!status.ok()) return status;
  Show(observer, Operation::kSwiGlu, index, Floats(act_), rows_, inner);
  const bool sharded = options_.sums != nullptr;
  float* const product = sharded ? Floats(partial_) : y;
  status = backend_.Gemm({.mode = mode,
                          .weight = network.down.get(),
                          .tokens = computed_rows_,
                          .x = Floats(act_),
                          .x_stride = inner,
                          .y = product,
                          .y_stride = hidden,
                          .residual = sharded ? nullptr : residual,
                          .round_output = round && !sharded});
  if (!status.ok() || !sharded) return status;
  return options_.sums->Join(mode, product, computed_rows_ * hidden, residual, y, round);
}

absl::Status FeedForward::RunDense(const Layer& layer, int64_t index, const NumericMode& mode,
                                   const float* normed, float* x, ForwardObserver* observer) {
  absl::Status status = RunNetwork(layer.dense, config_.intermediate_size, mode, normed,
                                   /*residual=*/x, x, observer, index);
  if (!status.ok()) return status;
  Show(observer, Operation::kDown, index, x, rows_, config_.hidden_size);
  return absl::OkStatus();
}

absl::Status FeedForward::RunShared(const Layer& layer, const NumericMode& mode,
                                    const float* normed) {
  if (layer.shared.gate_up == nullptr) return absl::OkStatus();
  // What the shared expert writes on the way is no output of the layer.
  absl::Status status =
      RunNetwork(layer.shared, config_.moe.shared_intermediate_size, mode, normed,
                 /*residual=*/nullptr, Floats(shared_out_), /*observer=*/nullptr, /*index=*/-1);
  if (!status.ok() || layer.shared_gate.matrix == nullptr) return status;
  return backend_.Gemm({.mode = RouterMode(mode),
                        .weight = layer.shared_gate.matrix.get(),
                        .tokens = computed_rows_,
                        .x = normed,
                        .x_stride = config_.hidden_size,
                        .y = Floats(shared_gate_),
                        .y_stride = 1});
}

int32_t* FeedForward::Experts(const Layer& layer) const {
  return Ints(experts_) + layer.moe_index * computed_rows_ * config_.moe.experts_per_token;
}

int32_t* FeedForward::Wanted(const Layer& layer) const {
  if (capacity_ == 0) return nullptr;
  return Ints(wanted_) + layer.moe_index * computed_rows_ * config_.moe.experts_per_token;
}

int64_t* FeedForward::TotalsOf(const Layer& layer) const {
  return static_cast<int64_t*>(totals_->data()) + layer.moe_index * (config_.moe.num_experts + 2);
}

absl::Status FeedForward::Route(const Layer& layer, int64_t index, const NumericMode& mode,
                                const float* normed, ForwardObserver* observer) {
  const MoeConfig& moe = config_.moe;
  absl::Status status = backend_.Gemm({.mode = RouterMode(mode),
                                       .weight = layer.router.matrix.get(),
                                       .tokens = computed_rows_,
                                       .x = normed,
                                       .x_stride = config_.hidden_size,
                                       .y = Floats(logits_),
                                       .y_stride = moe.num_experts});
  if (!status.ok()) return status;
  Show(observer, Operation::kRouter, index, Floats(logits_), rows_, moe.num_experts);
  const auto* limits =
      is_decode_ ? static_cast<const kernels::MoeStepLimits*>(limits_->data()) : nullptr;
  status = backend_.MoeRoute(
      {.mode = mode,
       .logits = Floats(logits_),
       .tokens = computed_rows_,
       .num_experts = moe.num_experts,
       .top_k = moe.experts_per_token,
       .normalise = moe.normalise,
       .scale = static_cast<float>(moe.scale),
       .capacity = capacity_,
       .overflow = options_.overflow,
       .exempt = has_exempt_ ? static_cast<const uint8_t*>(exempt_->data()) : nullptr,
       .limits = limits,
       .experts = Experts(layer),
       .wanted = Wanted(layer),
       .weights = Floats(weights_)});
  if (!status.ok()) return status;
  if (forced_ != nullptr) status = ForceRouting(layer);
  if (!status.ok()) return status;
  if (observer != nullptr) status = ShowRouting(layer, index, *observer);
  if (!status.ok()) return status;
  return backend_.MoePermute({.experts = Experts(layer),
                              .tokens = computed_rows_,
                              .num_experts = moe.num_experts,
                              .top_k = moe.experts_per_token,
                              .offsets = Ints(offsets_),
                              .token_of = Ints(token_of_),
                              .place_of = Ints(place_of_),
                              .totals = TotalsOf(layer),
                              .wanted = Wanted(layer),
                              .limits = limits});
}

Weighing FeedForward::weighing() const {
  return {.num_experts = config_.moe.num_experts,
          .top_k = config_.moe.experts_per_token,
          .normalise = config_.moe.normalise,
          .scale = static_cast<float>(config_.moe.scale)};
}

absl::Status FeedForward::CheckForced(int64_t rows, const ForcedRouting* forced) const {
  if (forced == nullptr) return absl::OkStatus();
  if (options_.capacity_factor != 0) {
    return absl::InvalidArgumentError("forced_routing: the experts have a capacity");
  }
  if (static_cast<int64_t>(forced->experts.size()) != num_moe_layers_) {
    return absl::InvalidArgumentError(absl::StrCat("forced_routing: ", forced->experts.size(),
                                                   " layers of ", num_moe_layers_, " mixtures"));
  }
  const size_t slots = static_cast<size_t>(rows * config_.moe.experts_per_token);
  for (size_t i = 0; i < forced->experts.size(); ++i) {
    const std::vector<int32_t>& experts = forced->experts[i];
    if (experts.size() != slots) {
      return absl::InvalidArgumentError(
          absl::StrCat("forced_routing.experts[", i, "]: ", experts.size(), " slots, not ", slots));
    }
    for (int32_t expert : experts) {
      if (expert >= -1 && expert < config_.moe.num_experts) continue;
      return absl::InvalidArgumentError(absl::StrCat("forced_routing.experts[", i, "]: expert ",
                                                     expert, " of ", config_.moe.num_experts));
    }
  }
  return absl::OkStatus();
}

absl::Status FeedForward::ForceRouting(const Layer& layer) {
  const int64_t top_k = config_.moe.experts_per_token;
  const int64_t num_experts = config_.moe.num_experts;
  const size_t slots = static_cast<size_t>(rows_ * top_k);
  host_wanted_.resize(slots);
  host_weights_.resize(slots);
  host_logits_.resize(static_cast<size_t>(rows_ * num_experts));
  absl::Status status =
      backend_.CopyToHost(host_wanted_.data(), Experts(layer), slots * sizeof(int32_t));
  status.Update(backend_.CopyToHost(host_weights_.data(), weights_->data(), slots * sizeof(float)));
  status.Update(backend_.CopyToHost(host_logits_.data(), logits_->data(),
                                    host_logits_.size() * sizeof(float)));
  if (!status.ok()) return status;
  const std::vector<int32_t>& experts = forced_->experts[layer.moe_index];
  for (int64_t row = 0; row < rows_; ++row) {
    const int32_t* wanted = host_wanted_.data() + row * top_k;
    const int32_t* forced = experts.data() + row * top_k;
    if (std::equal(forced, forced + top_k, wanted)) continue;
    WeighExperts(weighing(), host_logits_.data() + row * num_experts, wanted, forced,
                 host_weights_.data() + row * top_k);
  }
  status = backend_.CopyToDevice(Experts(layer), experts.data(), slots * sizeof(int32_t));
  status.Update(
      backend_.CopyToDevice(weights_->data(), host_weights_.data(), slots * sizeof(float)));
  return status;
}

absl::Status FeedForward::ShowRouting(const Layer& layer, int64_t index,
                                      ForwardObserver& observer) {
  const size_t slots = static_cast<size_t>(rows_ * config_.moe.experts_per_token);
  host_experts_.resize(slots);
  host_wanted_.resize(slots);
  host_weights_.resize(slots);
  absl::Status status =
      backend_.CopyToHost(host_experts_.data(), Experts(layer), slots * sizeof(int32_t));
  if (forced_ == nullptr && capacity_ != 0) {
    status.Update(backend_.CopyToHost(host_wanted_.data(), Wanted(layer), slots * sizeof(int32_t)));
  }
  status.Update(backend_.CopyToHost(host_weights_.data(), weights_->data(), slots * sizeof(float)));
  if (!status.ok()) return status;
  observer.OnRouting(
      {.layer = index,
       .tokens = rows_,
       .top_k = config_.moe.experts_per_token,
       .num_experts = config_.moe.num_experts,
       .experts = host_experts_.data(),
       .wanted = forced_ != nullptr || capacity_ != 0 ? host_wanted_.data() : host_experts_.data(),
       .weights = host_weights_.data()});
  return absl::OkStatus();
}

absl::Status FeedForward::RunMoe(const Layer& layer, int64_t index, const NumericMode& mode,
                                 const float* normed, float* x, ForwardObserver* observer) {
  const MoeConfig& moe = config_.moe;
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = moe.intermediate_size;
  const int64_t places = computed_rows_ * moe.experts_per_token;
  const bool round = RoundsActivations(mode);
  absl::Status status = Route(layer, index, mode, normed, observer);
  if (!status.ok()) return status;
  // Before the experts, whose working memory it shares.
  status = RunShared(layer, mode, normed);
  if (!status.ok()) return status;
  status = backend_.GroupedGemm({.mode = mode,
                                 .weights = layer.gate_up,
                                 .offsets = Ints(offsets_),
                                 .max_places = places,
                                 .x = normed,
                                 .x_rows = computed_rows_,
                                 .x_stride = hidden,
                                 .rows = Ints(token_of_),
                                 .y = Floats(gate_up_),
                                 .y_stride = 2 * inner,
                                 .round_output = round});
  if (!status.ok()) return status;
  // Places without a token, where slots were lost, hold what was there before; nobody reads them.
  status = backend_.SwiGlu({.mode = mode,
                            .gate_up = Floats(gate_up_),
                            .y = Floats(act_),
                            .tokens = places,
                            .cols = inner});
  if (!status.ok()) return status;
  status = backend_.GroupedGemm({.mode = mode,
                                 .weights = layer.down,
                                 .offsets = Ints(offsets_),
                                 .max_places = places,
                                 .x = Floats(act_),
                                 .x_rows = places,
                                 .x_stride = inner,
                                 .y = Floats(expert_rows_),
                                 .y_stride = hidden,
                                 .round_output = round && options_.sums == nullptr});
  if (!status.ok()) return status;
  if (options_.sums != nullptr) {
    // Every expert's output is complete before it is weighed.
    status = options_.sums->Join(mode, Floats(expert_rows_), places * hidden,
                                 /*residual=*/nullptr, Floats(expert_rows_), round);
    if (!status.ok()) return status;
  }
  status = backend_.MoeCombine(
      {.mode = mode,
       .expert_rows = Floats(expert_rows_),
       .place_of = Ints(place_of_),
       .weights = Floats(weights_),
       .tokens = computed_rows_,
       .top_k = moe.experts_per_token,
       .cols = hidden,
       .shared = layer.shared.down != nullptr ? Floats(shared_out_) : nullptr,
       .shared_gate = layer.shared_gate.matrix != nullptr ? Floats(shared_gate_) : nullptr,
       .residual = x,
       .y = x,
       .round_output = round});
  if (!status.ok()) return status;
  Show(observer, Operation::kDown, index, x, rows_, hidden);
  return absl::OkStatus();
}

}  // namespace verbatim::model

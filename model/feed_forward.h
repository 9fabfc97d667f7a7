// The feed-forward part of every layer: a SwiGLU network, or a mixture of experts with or without
// a shared one.
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
#include "model/forced_routing.h"
#include "model/forward_observer.h"
#include "model/load_matrix.h"
#include "model/moe_statistics.h"
#include "model/shard_plan.h"
#include "parallel/partial_sums.h"

namespace verbatim::model {

struct FeedForwardOptions {
  int64_t max_rows = 0;
  double capacity_factor = 0;  // 0: no limit
  kernels::CapacityOverflow overflow = kernels::CapacityOverflow::kDrop;
  // This rank's part, and the joins with the others' (null: there is one rank). Ranks hold a part
  // of every network, and every router.
  ShardPlan plan;
  parallel::PartialSums* sums = nullptr;
};

// Owns the weights of all layers and the working memory, which is allocated at load.
class FeedForward {
 public:
  // Packs the weights. The checkpoint must outlive the result.
  static absl::StatusOr<std::unique_ptr<FeedForward>> Load(kernels::Backend& backend,
                                                           const Checkpoint& checkpoint,
                                                           const FeedForwardOptions& options);

  // Before the first layer of a step of `rows` rows. `exempt` is empty (no row is) or [rows]. The
  // capacity of an expert is ceil(capacity_factor · limited · experts per token / experts), limited
  // being the rows that are not exempt.
  // `forced` (null: nothing is) must live until the step ends. `decode_rows` is 0, or what a decode
  // step computes (kernels/ops/decode_step.h): at least `rows`, the rest padding.
  absl::Status Begin(int64_t rows, absl::Span<const uint8_t> exempt,
                     const ForcedRouting* forced = nullptr, int64_t decode_rows = 0);
  // Which operations a decode step of such rows has (DecodeStep::variant): those without limits, or
  // with.
  int64_t VariantOf(int64_t rows, absl::Span<const uint8_t> exempt) const {
    return Capacity(rows, exempt) != 0 ? 1 : 0;
  }
  // x += the layer's function of `normed`; both [rows, hidden], contiguous.
  absl::Status Run(int64_t layer, const kernels::NumericMode& mode, const float* normed, float* x,
                   ForwardObserver* observer);
  // After the last layer.
  void End() {
    pending_rows_ = rows_;
    pending_computed_rows_ = computed_rows_;
  }

  // No step before counts in anything. Waits for the device.
  absl::Status Forget();

  // As Transformer::GemmKernels.
  std::vector<std::pair<std::string, std::string>> GemmKernels(const kernels::NumericMode& mode,
                                                               int64_t rows) const;
  // One entry for each layer that is a mixture of experts: what was routed since Forget or Load,
  // which the device counts. Waits for it.
  absl::StatusOr<std::vector<MoeStatistics>> Statistics();
  // The experts of the last step that ended, [mixtures, rows, top_k] in rank order, −1: lost; and
  // those that its rows would have had without limits, empty: the same. Valid until Begin. The
  // first call waits for the device.
  struct Routing {
    int64_t rows = 0;
    absl::Span<const int32_t> experts, wanted;
  };
  absl::StatusOr<Routing> LastRouting();
  // The kernel of each product of an expert that got so many tokens, in THROUGHPUT a function of
  // that number: "expert_gate_up" and "expert_down". Empty without mixtures.
  std::vector<std::pair<std::string, std::string>> ExpertKernels(const kernels::NumericMode& mode,
                                                                 int64_t tokens) const;
  int64_t weight_bytes() const;
  const ColumnSlices& slices() const { return slices_; }

 private:
  struct Network {
    std::unique_ptr<kernels::WeightMatrix> gate_up, down;
  };
  // A matrix decoded to F32, with the values that the packed one may keep reading.
  struct DecodedMatrix {
    std::vector<float> values;
    std::unique_ptr<kernels::WeightMatrix> matrix;
  };
  struct Layer {
    Network dense;  // null matrices in a mixture of experts
    DecodedMatrix router, shared_gate;
    std::vector<Network> experts;
    std::vector<const kernels::WeightMatrix*> gate_up, down;  // of the experts
    Network shared;
    int64_t moe_index = -1;  // among the mixtures; −1: the layer is dense
  };

  FeedForward(kernels::Backend& backend, const ModelConfig& config,
              const FeedForwardOptions& options)
      : backend_(backend), config_(options.plan.Local(config)), options_(options) {}

  // The router and the shared expert's gate compute in fp32 on every device: under a strong policy
  // as PORTABLE does, which on a CPU is PINNED's own arithmetic for F32 weights.
  // So it is in THROUGHPUT with several ranks: all must choose the same experts.
  kernels::NumericMode RouterMode(const kernels::NumericMode& mode) const;
  absl::Status LoadLayer(const Checkpoint& checkpoint, int64_t index);
  // `inner`: this rank's part of the intermediate size.
  absl::Status LoadNetwork(const Checkpoint& checkpoint, const std::string& prefix, Range inner,
                           const kernels::LoadMatrixOptions& options, Network& network);
  absl::Status LoadDecoded(const Checkpoint& checkpoint, const std::string& name,
                           DecodedMatrix& decoded);
  absl::Status Allocate();
  // y = residual + the network's function of `normed`, both [rows, hidden]; residual may be y or
  // null.
  absl::Status RunNetwork(const Network& network, int64_t inner, const kernels::NumericMode& mode,
                          const float* normed, const float* residual, float* y,
                          ForwardObserver* observer, int64_t index);
  absl::Status RunDense(const Layer& layer, int64_t index, const kernels::NumericMode& mode,
                        const float* normed, float* x, ForwardObserver* observer);
  absl::Status RunMoe(const Layer& layer, int64_t index, const kernels::NumericMode& mode,
                      const float* normed, float* x, ForwardObserver* observer);
  // Fills shared_out_ and shared_gate_.
  absl::Status RunShared(const Layer& layer, const kernels::NumericMode& mode, const float* normed);
  absl::Status Route(const Layer& layer, int64_t index, const kernels::NumericMode& mode,
                     const float* normed, ForwardObserver* observer);
  // Places of an expert for the rows that are not exempt; 0: as many as they want.
  int64_t Capacity(int64_t rows, absl::Span<const uint8_t> exempt) const;
  absl::Status CheckForced(int64_t rows, const ForcedRouting* forced) const;
  // Puts the forced experts and their weights in the place of those that the router chose, and
  // keeps the latter as wanted.
  absl::Status ForceRouting(const Layer& layer);
  absl::Status ShowRouting(const Layer& layer, int64_t index, ForwardObserver& observer);
  // The device's counters, [mixtures, experts + 2] (MoePermuteParams::totals).
  absl::StatusOr<std::vector<int64_t>> Totals();
  // Copies the experts of the last finished step.
  absl::Status FetchRouting();
  int32_t* Experts(const Layer& layer) const;
  int32_t* Wanted(const Layer& layer) const;  // null without capacity
  int64_t* TotalsOf(const Layer& layer) const;
  Weighing weighing() const;

  kernels::Backend& backend_;
  const ModelConfig config_;  // of this rank
  const FeedForwardOptions options_;
  ColumnSlices slices_;
  std::vector<Layer> layers_;
  int64_t num_moe_layers_ = 0;
  // Working memory. Rows are those of the batch, or slots of (row, expert of the row).
  std::unique_ptr<kernels::Buffer> gate_up_, act_;
  std::unique_ptr<kernels::Buffer> partial_;  // [rows, hidden]; null with one rank
  std::unique_ptr<kernels::Buffer> logits_, weights_, shared_out_, shared_gate_, expert_rows_;
  std::unique_ptr<kernels::Buffer> offsets_, token_of_, place_of_, exempt_;
  std::unique_ptr<kernels::Buffer> experts_, wanted_;  // [mixtures, computed rows, top_k]
  std::unique_ptr<kernels::Buffer> limits_;            // kernels::MoeStepLimits
  std::unique_ptr<kernels::Buffer> totals_;            // as Totals
  // The step at hand.
  int64_t rows_ = 0;
  int64_t computed_rows_ = 0;  // with padding
  bool is_decode_ = false;
  int64_t capacity_ = 0;
  bool has_exempt_ = false;
  const ForcedRouting* forced_ = nullptr;
  // The step that finished and whose experts nobody asked for yet: no other is fetched.
  int64_t pending_rows_ = 0, pending_computed_rows_ = 0;
  int64_t fetched_rows_ = 0;  // of the step that the host vectors hold
  std::vector<int32_t> host_experts_, host_wanted_;
  std::vector<float> host_weights_, host_logits_;
  std::vector<int64_t> forgotten_;  // as Totals
};

}  // namespace verbatim::model

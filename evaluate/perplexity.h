// Perplexity of a text: how well a model predicts each next token.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/numeric_mode.h"
#include "model/checkpoint.h"

namespace verbatim::evaluate {

struct PerplexityOptions {
  std::string device = "cpu";    // as for kernels::OpenBackend
  int threads = 0;               // 0: every core this process may use
  int64_t window_tokens = 512;   // at least 2; the first token of a window is given, not predicted
  int64_t max_batch_rows = 512;  // rows of one forward pass
  kernels::NumericMode mode;     // PORTABLE unless said otherwise
  // Of mixtures of experts, as in WindowRunnerOptions; a limit needs THROUGHPUT.
  double moe_capacity_factor = 0;
  kernels::CapacityOverflow moe_overflow = kernels::CapacityOverflow::kDrop;
  uint64_t bootstrap_seed = 1;  // of the interval
  int64_t bootstrap_draws = 2000;
  // Called after each window with the number done and the number in all; may be empty.
  std::function<void(int64_t done, int64_t total)> progress;
};

struct Perplexity {
  int64_t tokens = 0;              // predicted: windows · (window_tokens − 1)
  double mean_nll = 0;             // nats a token
  double perplexity = 0;           // exp(mean_nll)
  double low = 0, high = 0;        // 95 % percentile bootstrap over windows (B. Efron, 1979)
  std::vector<double> window_nll;  // mean of each window, in order
  // Mixtures of experts: experts that rows had, over all layers, and how many of these slots were
  // lost or went to another expert because an expert was full.
  int64_t moe_slots = 0, moe_lost_slots = 0, moe_rerouted_slots = 0;
};

// −ln softmax(logits)[token] in double, NaN where a logit is NaN or +inf: the maximum is taken out,
// exp and ln are the contract's (kernels/numerics/elementary64.h), the sum runs in ascending id.
double NegativeLogLikelihood(absl::Span<const float> logits, int32_t token);

// Mean, perplexity and interval of windows of `tokens_per_window` predicted tokens each. At least
// one window; with one the interval is a point.
Perplexity Summarise(std::vector<double> window_nll, int64_t tokens_per_window, uint64_t seed,
                     int64_t draws);

// Perplexity over a baseline's on the same windows, with an interval by drawing windows in pairs:
// much narrower than the two intervals, since hard windows are hard for both.
struct PerplexityRatio {
  double ratio = 1, low = 1, high = 1;
};
// INVALID_ARGUMENT unless both have as many windows, at least one.
absl::StatusOr<PerplexityRatio> Compare(absl::Span<const double> window_nll,
                                        absl::Span<const double> baseline, uint64_t seed,
                                        int64_t draws);

// INVALID_ARGUMENT for windows of other lengths or below 2 tokens, and for a capacity limit under a
// strong policy or of a dense model; INTERNAL naming window and
// position when a likelihood is not finite.
absl::StatusOr<Perplexity> MeasurePerplexity(const model::Checkpoint& checkpoint,
                                             absl::Span<const std::vector<int32_t>> windows,
                                             const PerplexityOptions& options);

}  // namespace verbatim::evaluate

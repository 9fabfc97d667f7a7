// Likelihoods of the tokens of windows, and their mean's interval.
#include "evaluate/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "evaluate/window_runner.h"
#include "kernels/numerics/elementary64.h"
#include "kernels/numerics/philox.h"

namespace verbatim::evaluate {
namespace {

// Below this, exp adds nothing to a sum that is at least 1.
constexpr double kNegligibleExponent = -60.0;

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace

double NegativeLogLikelihood(absl::Span<const float> logits, int32_t token) {
  float max = logits[0];
  for (const float logit : logits) max = std::max(max, logit);
  double sum = 0;
  for (const float logit : logits) {
    const double x = static_cast<double>(logit) - static_cast<double>(max);
    if (!(x <= 0)) return std::numeric_limits<double>::quiet_NaN();  // a NaN, or +inf
    if (x >= kNegligibleExponent) sum += numerics::Exp64(x);
  }
  return numerics::Log64(sum) - (static_cast<double>(logits[token]) - static_cast<double>(max));
}

Perplexity Summarise(std::vector<double> window_nll, int64_t tokens_per_window, uint64_t seed,
                     int64_t draws) {
  Perplexity result;
  const int64_t windows = static_cast<int64_t>(window_nll.size());
  result.tokens = windows * tokens_per_window;
  result.mean_nll = Mean(window_nll);
  std::vector<double> means;
  for (int64_t draw = 0; draw < draws; ++draw) {
    double sum = 0;
    for (int64_t i = 0; i < windows; ++i) {
      const uint32_t word =
          numerics::PhiloxWord(seed, static_cast<uint32_t>(draw), 0, static_cast<uint32_t>(i));
      // floor(word / 2^32 · windows): no worse than 1 in 2^32 / windows from even.
      sum += window_nll[static_cast<uint64_t>(word) * static_cast<uint64_t>(windows) >> 32];
    }
    means.push_back(sum / static_cast<double>(windows));
  }
  std::sort(means.begin(), means.end());
  const auto percentile = [&](double share) {
    if (means.empty()) return result.mean_nll;
    const auto last = static_cast<double>(means.size() - 1);
    return means[static_cast<size_t>(std::lround(share * last))];
  };
  result.perplexity = numerics::Exp64(result.mean_nll);
  result.low = numerics::Exp64(percentile(0.025));
  result.high = numerics::Exp64(percentile(0.975));
  result.window_nll = std::move(window_nll);
  return result;
}

absl::StatusOr<PerplexityRatio> Compare(absl::Span<const double> window_nll,
                                        absl::Span<const double> baseline, uint64_t seed,
                                        int64_t draws) {
  if (window_nll.empty() || window_nll.size() != baseline.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(window_nll.size(), " windows beside ", baseline.size(), " of the baseline"));
  }
  std::vector<double> difference(window_nll.begin(), window_nll.end());
  for (size_t i = 0; i < baseline.size(); ++i) difference[i] -= baseline[i];
  const Perplexity result = Summarise(std::move(difference), 1, seed, draws);
  return PerplexityRatio{result.perplexity, result.low, result.high};
}

absl::StatusOr<Perplexity> MeasurePerplexity(const model::Checkpoint& checkpoint,
                                             absl::Span<const std::vector<int32_t>> windows,
                                             const PerplexityOptions& options) {
  const int64_t length = options.window_tokens;
  if (windows.empty() || length < 2) {
    return absl::InvalidArgumentError(absl::StrCat("perplexity needs windows of 2 tokens or more; ",
                                                   windows.size(), " windows of ", length));
  }
  const model::MoeConfig& moe = checkpoint.config().moe;
  if (options.moe_capacity_factor > 0 && moe.num_experts == 0) {
    return absl::InvalidArgumentError(
        "a capacity limit, but the model is not a mixture of experts");
  }
  if (options.moe_capacity_factor > 0 && kernels::IsStrong(options.mode.policy)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a capacity limit, but policy ", std::string(NameOf(options.mode.policy)), " has none"));
  }
  absl::StatusOr<std::unique_ptr<WindowRunner>> runner =
      WindowRunner::Create(checkpoint, {.device = options.device,
                                        .threads = options.threads,
                                        .window_tokens = length,
                                        .max_batch_rows = options.max_batch_rows,
                                        .moe_capacity_factor = options.moe_capacity_factor,
                                        .moe_overflow = options.moe_overflow});
  if (!runner.ok()) return runner.status();
  const int64_t vocab = checkpoint.config().vocab_size;
  const int64_t total = static_cast<int64_t>(windows.size());
  std::vector<double> window_nll;
  absl::Status status = (*runner)->Run(
      windows, options.mode, [&](int64_t first_window, int64_t num_windows) -> absl::Status {
        for (int64_t w = 0; w < num_windows; ++w) {
          const std::vector<int32_t>& ids = windows[first_window + w];
          const int64_t first_row = w * length;
          double sum = 0;
          absl::Status finite;
          absl::Status computed = (*runner)->Logits(
              first_row, length - 1, options.mode,
              [&](int64_t slice_row, int64_t rows, const float* logits) {
                for (int64_t r = 0; r < rows; ++r) {
                  const int64_t position = slice_row + r - first_row;
                  const double nll = NegativeLogLikelihood(
                      {logits + r * vocab, static_cast<size_t>(vocab)}, ids[position + 1]);
                  if (!std::isfinite(nll)) {
                    finite.Update(absl::InternalError(
                        absl::StrCat("window ", first_window + w, ", position ", position,
                                     ": the likelihood is not finite")));
                  }
                  sum += nll;
                }
              });
          computed.Update(finite);
          if (!computed.ok()) return computed;
          window_nll.push_back(sum / static_cast<double>(length - 1));
          if (options.progress) options.progress(first_window + w + 1, total);
        }
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  Perplexity result =
      Summarise(std::move(window_nll), length - 1, options.bootstrap_seed, options.bootstrap_draws);
  const auto layers = (*runner)->transformer().ExpertStatistics();
  if (!layers.ok()) return layers.status();
  for (const model::MoeStatistics& layer : *layers) {
    result.moe_slots += layer.tokens * moe.experts_per_token;
    result.moe_lost_slots += layer.lost_slots;
    result.moe_rerouted_slots += layer.rerouted_slots;
  }
  return result;
}

}  // namespace verbatim::evaluate

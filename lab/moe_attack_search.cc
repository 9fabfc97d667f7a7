// Routing of victims and candidates, and how they meet.
#include "lab/moe_attack_search.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "evaluate/window_runner.h"

namespace verbatim::lab {
namespace {

// Keeps the routing of one forward pass.
class RoutingWatch final : public model::ForwardObserver {
 public:
  void OnOutput(const model::ObservedRows& /*output*/) override {}
  void OnRouting(const model::ObservedRouting& routing) override {
    const int64_t slots = routing.tokens * routing.top_k;
    layers.push_back(
        {{routing.experts, routing.experts + slots}, {routing.weights, routing.weights + slots}});
  }
  Routing layers;
};

Routing Rows(const Routing& pass, int64_t first, int64_t count, int64_t top_k) {
  Routing rows;
  for (const LayerRouting& layer : pass) {
    const auto slice = [&](const auto& all) {
      return std::pair{all.begin() + first * top_k, all.begin() + (first + count) * top_k};
    };
    const auto [experts, experts_end] = slice(layer.experts);
    const auto [weights, weights_end] = slice(layer.weights);
    rows.push_back({{experts, experts_end}, {weights, weights_end}});
  }
  return rows;
}

}  // namespace

double Crowding(const Routing& victim, int64_t victim_row, const Routing& crowd, int64_t top_k,
                double attacker_rows, double capacity) {
  double sum = 0;
  for (size_t layer = 0; layer < victim.size(); ++layer) {
    const std::vector<int32_t>& taken = crowd[layer].experts;
    const auto rows = static_cast<double>(taken.size()) / static_cast<double>(top_k);
    for (int64_t rank = 0; rank < top_k; ++rank) {
      const auto slot = static_cast<size_t>(victim_row * top_k + rank);
      int64_t ahead = 0;
      for (size_t i = 0; i < taken.size(); ++i) {
        ahead += static_cast<int64_t>(i) % top_k <= rank && taken[i] == victim[layer].experts[slot];
      }
      const double slots = attacker_rows * static_cast<double>(ahead) / rows;
      sum += static_cast<double>(victim[layer].weights[slot]) * std::min(1.0, slots / capacity);
    }
  }
  return victim.empty() ? 0 : sum / static_cast<double>(victim.size());
}

absl::StatusOr<std::vector<CrowdingToken>> FindCrowdingTokens(
    const model::Checkpoint& checkpoint, absl::Span<const std::vector<int32_t>> victims,
    const AttackSearchOptions& options) {
  const model::MoeConfig& moe = checkpoint.config().moe;
  if (moe.num_experts == 0) {
    return absl::InvalidArgumentError("the model is dense: it has no experts to crowd");
  }
  if (options.candidates < 1 || options.attackers < 1 || options.attacker_tokens < 1 ||
      !(options.capacity_factor > 0)) {
    return absl::InvalidArgumentError("the search needs attackers, candidates and a capacity");
  }
  // Causal: what stands behind a position does not matter to it, so all windows are padded to one
  // length.
  auto length = static_cast<size_t>(options.attacker_tokens);
  std::vector<std::vector<int32_t>> windows(victims.begin(), victims.end());
  for (const auto& victim : windows) {
    if (victim.empty()) return absl::InvalidArgumentError("a victim's prompt is empty");
    length = std::max(length, victim.size());
  }
  for (auto& window : windows) window.resize(length, window.back());
  std::mt19937_64 random(options.seed);
  std::vector<int32_t> candidates;
  for (int64_t i = 0; i < options.candidates; ++i) {
    candidates.push_back(
        static_cast<int32_t>(random() % static_cast<uint64_t>(checkpoint.config().vocab_size)));
    windows.emplace_back(length, candidates.back());
  }

  auto runner = evaluate::WindowRunner::Create(
      checkpoint, {.threads = options.threads, .window_tokens = static_cast<int64_t>(length)});
  if (!runner.ok()) return runner.status();
  RoutingWatch watch;
  (*runner)->transformer().set_observer(&watch);
  const int64_t top_k = moe.experts_per_token;
  std::vector<Routing> routings;  // of victims, then of candidates
  const kernels::NumericMode mode{kernels::Policy::kThroughput, kernels::ActivationType::kF32};
  const absl::Status status = (*runner)->Run(windows, mode, [&](int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const auto index = static_cast<size_t>(first + i);
      const int64_t rows = index < victims.size() ? static_cast<int64_t>(victims[index].size())
                                                  : options.attacker_tokens;
      routings.push_back(Rows(watch.layers, i * static_cast<int64_t>(length), rows, top_k));
    }
    watch.layers.clear();
    return absl::OkStatus();
  });
  if (!status.ok()) return status;

  std::vector<CrowdingToken> best(victims.size());
  const auto attacker_rows = static_cast<double>(options.attackers * options.attacker_tokens);
  for (size_t v = 0; v < victims.size(); ++v) {
    const auto rows = static_cast<double>(victims[v].size());
    const double capacity =
        std::ceil(options.capacity_factor * (attacker_rows + rows) * static_cast<double>(top_k) /
                  static_cast<double>(moe.num_experts));
    for (size_t c = 0; c < candidates.size(); ++c) {
      const double crowding =
          Crowding(routings[v], static_cast<int64_t>(victims[v].size()) - 1,
                   routings[victims.size() + c], top_k, attacker_rows, capacity);
      best[v].mean_crowding += crowding / static_cast<double>(candidates.size());
      if (c == 0 || crowding > best[v].crowding) {
        best[v].token = candidates[c];
        best[v].crowding = crowding;
      }
    }
  }
  return best;
}

}  // namespace verbatim::lab

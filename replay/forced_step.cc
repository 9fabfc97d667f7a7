// Experts for every row of a step that is replayed.
#include "replay/forced_step.h"

#include <algorithm>
#include <vector>

namespace verbatim::replay {
namespace {

// Hands out the slots of fillers in one layer: first those that recorded numbers of tokens ask for,
// then the experts that no own row has, in turn.
class FillerExperts {
 public:
  FillerExperts(const trace::Mixture& mixture, const trace::LayerRouting& layer) {
    std::vector<int32_t> own(static_cast<size_t>(mixture.num_experts));
    for (int32_t expert : layer.experts) {
      if (expert >= 0) ++own[expert];
    }
    for (const auto& [expert, tokens] : layer.tokens) {
      wanting_.insert(wanting_.end(), static_cast<size_t>(tokens - own[expert]), expert);
    }
    for (int32_t expert = 0; expert < mixture.num_experts; ++expert) {
      const auto is_it = [&](const auto& pair) { return pair.first == expert; };
      if (std::none_of(layer.tokens.begin(), layer.tokens.end(), is_it)) others_.push_back(expert);
    }
  }

  int32_t Next() {
    if (taken_ < wanting_.size()) return wanting_[taken_++];
    return others_.empty() ? -1 : others_[others_taken_++ % others_.size()];
  }

 private:
  std::vector<int32_t> wanting_, others_;
  size_t taken_ = 0, others_taken_ = 0;
};

}  // namespace

model::ForcedRouting ForcedRoutingOf(const trace::Mixture& mixture, const trace::Step& step,
                                     absl::Span<const OwnRow> own) {
  const size_t top_k = static_cast<size_t>(mixture.experts_per_token);
  model::ForcedRouting forced;
  for (const trace::LayerRouting& layer : step.routing) {
    FillerExperts fillers(mixture, layer);
    std::vector<int32_t>& experts = forced.experts.emplace_back();
    size_t next_own = 0;
    for (int64_t row = 0; row < step.rows(); ++row) {
      const bool mine = next_own < own.size() && own[next_own].row == row;
      const auto recorded = layer.experts.begin() + static_cast<int64_t>(next_own * top_k);
      if (mine) {
        experts.insert(experts.end(), recorded, recorded + static_cast<int64_t>(top_k));
        ++next_own;
      } else {
        for (size_t r = 0; r < top_k; ++r) experts.push_back(fillers.Next());
      }
    }
  }
  return forced;
}

}  // namespace verbatim::replay

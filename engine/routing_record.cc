// What is remembered of a pass's experts for traces.
#include "engine/routing_record.h"

#include <algorithm>
#include <limits>
#include <map>

#include "kernels/ops/moe.h"

namespace verbatim::engine {

static_assert(kernels::kMaxExperts <= std::numeric_limits<int16_t>::max());

trace::Mixture MixtureOf(const model::ModelConfig& config) {
  trace::Mixture mixture;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    if (config.moe.IsMoe(i)) mixture.layers.push_back(static_cast<int32_t>(i));
  }
  if (mixture.layers.empty()) return mixture;
  mixture.num_experts = static_cast<int32_t>(config.moe.num_experts);
  mixture.experts_per_token = static_cast<int32_t>(config.moe.experts_per_token);
  return mixture;
}

RoutingRecord::RoutingRecord(const model::FeedForward::Routing& routing, int64_t num_layers,
                             int64_t top_k)
    : rows_(routing.rows), top_k_(top_k) {
  const size_t slots = static_cast<size_t>(num_layers * rows_ * top_k);
  experts_.assign(routing.experts.begin(), routing.experts.begin() + slots);
  if (routing.wanted.empty()) return;
  for (size_t i = 0; i < slots; ++i) {
    if (routing.wanted[i] == routing.experts[i]) continue;
    wanted_.emplace_back(static_cast<int32_t>(i), static_cast<int16_t>(routing.wanted[i]));
  }
}

int64_t RoutingRecord::size_bytes() const {
  return static_cast<int64_t>(experts_.size() * sizeof(experts_[0]) +
                              wanted_.size() * sizeof(wanted_[0]));
}

std::vector<trace::LayerRouting> RoutingRecord::Of(
    absl::Span<const std::pair<int32_t, int32_t>> own) const {
  std::vector<trace::LayerRouting> layers;
  if (rows_ == 0) return layers;
  const int32_t slots = static_cast<int32_t>(rows_ * top_k_);  // of a layer
  const int32_t num_layers = static_cast<int32_t>(experts_.size()) / slots;
  auto moved = wanted_.begin();
  for (int32_t l = 0; l < num_layers; ++l) {
    const int16_t* experts = experts_.data() + int64_t{l} * slots;
    trace::LayerRouting& layer = layers.emplace_back();
    std::map<int32_t, int32_t> tokens;  // of the experts that own rows have or wanted
    for (const auto& [first_row, rows] : own) {
      const int32_t begin = first_row * static_cast<int32_t>(top_k_);
      const int32_t end = begin + rows * static_cast<int32_t>(top_k_);
      const int32_t own_begin = static_cast<int32_t>(layer.experts.size()) - begin;
      layer.experts.insert(layer.experts.end(), experts + begin, experts + end);
      for (int32_t s = begin; s < end; ++s) {
        if (experts[s] >= 0) tokens.emplace(experts[s], 0);
      }
      for (; moved != wanted_.end() && moved->first < l * slots + end; ++moved) {
        const int32_t slot = moved->first - l * slots;
        if (slot < begin) continue;
        layer.wanted.emplace_back(own_begin + slot, moved->second);
        tokens.emplace(moved->second, 0);
      }
    }
    for (int32_t s = 0; s < slots; ++s) {
      const auto it = tokens.find(experts[s]);
      if (it != tokens.end()) ++it->second;
    }
    layer.tokens.assign(tokens.begin(), tokens.end());
  }
  return layers;
}

}  // namespace verbatim::engine

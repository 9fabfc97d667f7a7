// What is remembered of a pass's experts for traces.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "model/feed_forward.h"
#include "trace/trace.h"

namespace verbatim::engine {

// The model's mixtures of experts, as traces name them.
trace::Mixture MixtureOf(const model::ModelConfig& config);

// The experts of all rows of one pass in every mixture: two bytes a slot, and more only for slots
// that were lost or went elsewhere.
class RoutingRecord {
 public:
  RoutingRecord() = default;
  RoutingRecord(const model::FeedForward::Routing& routing, int64_t num_layers, int64_t top_k);

  bool empty() const { return experts_.empty(); }
  int64_t size_bytes() const;
  // By mixture, of the rows that `own` names: (first row, rows) each.
  std::vector<trace::LayerRouting> Of(absl::Span<const std::pair<int32_t, int32_t>> own) const;

 private:
  int64_t rows_ = 0;
  int64_t top_k_ = 0;
  std::vector<int16_t> experts_;                     // [mixtures, rows, top_k]
  std::vector<std::pair<int32_t, int16_t>> wanted_;  // (index into experts_, expert), ascending
};

}  // namespace verbatim::engine

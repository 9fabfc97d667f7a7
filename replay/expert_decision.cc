// What a mixture of experts did with one row of an answer.
#include "replay/expert_decision.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "replay/kernel_choice.h"

namespace verbatim::replay {
namespace {

// Slots of the row in LayerRouting::experts.
int32_t FirstSlot(const trace::Trace& trace, const CapturedRow& row) {
  return row.own_row * trace.mixture.experts_per_token;
}

// Of an expert with so many tokens; both of its products where they differ.
std::string ExpertKernel(const trace::Trace& trace, const trace::Step& step, int64_t tokens,
                         int64_t layer) {
  const bool strong = kernels::IsStrong(step.mode.policy);
  const auto of = [&](const char* matrix) {
    return strong ? KernelOf(trace, step.mode, step.rows(), Product::kLayers,
                             absl::StrCat("experts_", matrix), layer)
                  : KernelOf(trace, step.mode, tokens, Product::kExperts,
                             absl::StrCat("expert_", matrix), layer);
  };
  const std::string gate_up = of("gate_up"), down = of("down");
  return gate_up == down ? gate_up : absl::StrCat(gate_up, " and ", down);
}

}  // namespace

const trace::LayerRouting* RoutingOf(const trace::Trace& trace, const CapturedRow& row,
                                     int64_t layer) {
  const std::vector<int32_t>& layers = trace.mixture.layers;
  const auto it = std::find(layers.begin(), layers.end(), layer);
  if (row.step < 0 || it == layers.end()) return nullptr;
  return &trace.steps[row.step].routing[static_cast<size_t>(it - layers.begin())];
}

std::optional<int32_t> FirstOtherRank(const trace::Trace& a, const CapturedRow& row_a,
                                      const trace::Trace& b, const CapturedRow& row_b,
                                      int64_t layer) {
  const trace::LayerRouting* x = RoutingOf(a, row_a, layer);
  const trace::LayerRouting* y = RoutingOf(b, row_b, layer);
  if (x == nullptr || y == nullptr) return std::nullopt;
  for (int32_t r = 0; r < a.mixture.experts_per_token; ++r) {
    if (x->experts[FirstSlot(a, row_a) + r] != y->experts[FirstSlot(b, row_b) + r]) return r;
  }
  return std::nullopt;
}

std::optional<FullExpert> FullAt(const trace::Trace& trace, const CapturedRow& row,
                                 int32_t position, int64_t layer, int32_t rank) {
  const trace::LayerRouting& routing = *RoutingOf(trace, row, layer);
  const int32_t slot = FirstSlot(trace, row) + rank;
  const int32_t wanted = routing.WantedAt(slot);
  if (wanted == routing.experts[slot]) return std::nullopt;
  return FullExpert{.position = position,
                    .layer = layer,
                    .rank = rank,
                    .expert = wanted,
                    .instead = routing.experts[slot],
                    .tokens = routing.TokensOf(wanted)};
}

std::string FullText(const FullExpert& full) {
  return absl::StrCat("expert ", full.expert, " full in layer ", full.layer,
                      full.instead < 0 ? ", lost" : absl::StrCat(", rerouted to ", full.instead));
}

std::string ExpertDecision(const trace::Trace& trace, const CapturedRow& row, int64_t layer) {
  const trace::LayerRouting& routing = *RoutingOf(trace, row, layer);
  const trace::Step& step = trace.steps[row.step];
  std::vector<std::string> parts;
  for (int32_t r = 0; r < trace.mixture.experts_per_token; ++r) {
    const int32_t slot = FirstSlot(trace, row) + r;
    const int32_t expert = routing.experts[slot], wanted = routing.WantedAt(slot);
    if (expert < 0) {
      parts.push_back(absl::StrCat("expert ", wanted, " full, lost"));
      continue;
    }
    const int32_t tokens = routing.TokensOf(expert);
    const std::string kernel = ExpertKernel(trace, step, tokens, layer);
    const std::string name = expert == wanted
                                 ? absl::StrCat("expert ", expert)
                                 : absl::StrCat("expert ", wanted, " full, rerouted to ", expert);
    parts.push_back(absl::StrCat(name, kernel.empty() ? "" : absl::StrCat(" on ", kernel), " for ",
                                 tokens, tokens == 1 ? " token" : " tokens"));
  }
  const std::string shared =
      KernelOf(trace, step.mode, step.rows(), Product::kLayers, "shared_gate_up", layer);
  if (!shared.empty()) {
    parts.push_back(absl::StrCat("shared expert on ", shared, " for ", step.rows(),
                                 step.rows() == 1 ? " row" : " rows"));
  }
  return absl::StrJoin(parts, "; ");
}

void CountSlots(const trace::Trace& trace, const Capture& capture, Side* side) {
  for (const CapturedRow& row : capture.rows()) {
    for (int32_t layer : trace.mixture.layers) {
      const trace::LayerRouting* routing = RoutingOf(trace, row, layer);
      if (routing == nullptr) continue;
      for (int32_t r = 0; r < trace.mixture.experts_per_token; ++r) {
        const int32_t slot = FirstSlot(trace, row) + r;
        const int32_t expert = routing->experts[slot];
        ++side->slots;
        side->lost_slots += expert < 0;
        side->rerouted_slots += expert >= 0 && expert != routing->WantedAt(slot);
      }
    }
  }
}

}  // namespace verbatim::replay

// Consistency of what a trace says of experts.
#include "trace/routing.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"

namespace verbatim::trace {
namespace {

using Pairs = std::vector<std::pair<int32_t, int32_t>>;

absl::Status Bad(const std::string& field, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status CheckPairs(const Pairs& pairs, int64_t first_end, int64_t second_end,
                        const std::string& field) {
  for (size_t i = 0; i < pairs.size(); ++i) {
    const auto& [first, second] = pairs[i];
    if (first < 0 || first >= first_end || second < 0 || second >= second_end ||
        (i > 0 && first <= pairs[i - 1].first)) {
      return Bad(field, absl::StrCat("the pair (", first, ", ", second,
                                     ") is out of range or out of order"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLayer(const Mixture& mixture, const Step& step, const LayerRouting& layer,
                        const std::string& field) {
  const int64_t top_k = mixture.experts_per_token;
  const int64_t slots = step.own_rows() * top_k;
  if (static_cast<int64_t>(layer.experts.size()) != slots) {
    return Bad(field, absl::StrCat(layer.experts.size(), " experts for ", slots, " slots"));
  }
  absl::Status status = CheckPairs(layer.wanted, slots, mixture.num_experts, field);
  status.Update(CheckPairs(layer.tokens, mixture.num_experts, step.rows() + 1, field));
  if (!status.ok()) return status;
  std::map<int32_t, int64_t> own;  // slots by expert
  int64_t lost = 0;
  for (const auto& [slot, expert] : layer.wanted) {
    own.emplace(expert, 0);
    if (expert == layer.experts[slot]) {
      return Bad(field, absl::StrCat("slot ", slot, " has the expert that it wanted, ", expert));
    }
  }
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int32_t expert = layer.experts[slot];
    if (expert < -1 || expert >= mixture.num_experts) {
      return Bad(field, absl::StrCat("expert ", expert, " of ", mixture.num_experts));
    }
    if (expert >= 0) {
      const auto row = layer.experts.begin() + slot / top_k * top_k;
      if (std::find(row, layer.experts.begin() + slot, expert) != layer.experts.begin() + slot) {
        return Bad(field, absl::StrCat("a row has expert ", expert, " twice"));
      }
      ++own[expert];
    } else if (layer.WantedAt(static_cast<int32_t>(slot)) < 0) {
      return Bad(field, absl::StrCat("slot ", slot, " is lost and wanted no expert"));
    } else {
      ++lost;
    }
  }
  int64_t all = 0;
  for (const auto& [expert, tokens] : layer.tokens) all += tokens;
  if (all > step.rows() * top_k - lost || own.size() != layer.tokens.size()) {
    return Bad(field, absl::StrCat("tokens of ", layer.tokens.size(), " experts, ", all,
                                   " in all, are not those of ", own.size(), " experts and ",
                                   step.rows() * top_k - lost, " slots"));
  }
  for (const auto& [expert, count] : own) {
    if (layer.TokensOf(expert) < count) {
      return Bad(field, absl::StrCat("expert ", expert, " has ", layer.TokensOf(expert),
                                     " tokens, ", count, " of them the answer's"));
    }
  }
  return absl::OkStatus();
}

int32_t Find(const Pairs& pairs, int32_t key, int32_t otherwise) {
  const auto at = std::lower_bound(pairs.begin(), pairs.end(), key,
                                   [](const auto& pair, int32_t k) { return pair.first < k; });
  return at != pairs.end() && at->first == key ? at->second : otherwise;
}

}  // namespace

int32_t LayerRouting::WantedAt(int32_t slot) const { return Find(wanted, slot, experts[slot]); }

int32_t LayerRouting::TokensOf(int32_t expert) const { return Find(tokens, expert, 0); }

absl::Status CheckRouting(const Trace& trace, const Step& step, const std::string& field) {
  if (step.routing.size() != trace.mixture.layers.size()) {
    return Bad(absl::StrCat(field, ".routing"),
               absl::StrCat(step.routing.size(), " layers of ", trace.mixture.layers.size()));
  }
  for (size_t i = 0; i < step.routing.size(); ++i) {
    absl::Status status =
        CheckLayer(trace.mixture, step, step.routing[i], absl::StrCat(field, ".routing[", i, "]"));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace verbatim::trace

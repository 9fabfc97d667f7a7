// An answer beside a rerun of the same request.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace verbatim::fragility {

// One greedy generation: its tokens, and the top-two margin of each one's raw logits.
struct Generation {
  std::vector<int32_t> tokens;
  std::vector<float> top_margins;  // as many as tokens
};

struct Comparison {
  std::optional<int64_t> first_difference;  // token index; the shorter length if one is a prefix
  // Of each token up to and including the first that differs (DriftTable): what comes after it was
  // generated from other tokens and says nothing about drift.
  std::vector<double> drops;

  bool differs() const { return first_difference.has_value(); }
};

Comparison Compare(const Generation& answer, const Generation& rerun);

}  // namespace verbatim::fragility

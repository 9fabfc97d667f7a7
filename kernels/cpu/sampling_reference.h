// A plain sampler by sorting, for tests: the contract of kernels/ops/sampling.h word by word.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/numerics/elementary.h"
#include "kernels/numerics/elementary64.h"
#include "kernels/numerics/gumbel.h"
#include "kernels/numerics/philox.h"
#include "kernels/ops/sampling.h"

namespace verbatim::kernels::cpu::reference {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Ids in (logit descending, id ascending) order.
inline std::vector<int32_t> Sorted(const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return ids;
}

inline uint64_t Weight(float x, float max) {
  return static_cast<uint64_t>(static_cast<double>(numerics::ExpF(x - max)) * 0x1p40);
}

inline std::vector<float> Processed(const SamplingRow& row, std::vector<float> logits) {
  for (int32_t t : row.banned) logits[t] = -kInfinity;
  for (const auto& [t, bias] : row.logit_bias) logits[t] += bias;
  for (const TokenCount& c : row.counts) {
    float& l = logits[c.token];
    if (c.in_prompt + c.in_output > 0) {
      l = l > 0 ? l / row.repetition_penalty : l * row.repetition_penalty;
    }
    if (c.in_output > 0) {
      const float frequency = static_cast<float>(c.in_output) * row.frequency_penalty;
      l = (l - frequency) - row.presence_penalty;
    }
  }
  return logits;
}

// Logits over temperature with −inf for every token that the filters remove.
inline std::vector<float> Filtered(const SamplingRow& row, const std::vector<float>& logits) {
  std::vector<float> z = Processed(row, logits);
  for (float& l : z) l = l / row.temperature;
  std::vector<int32_t> order = Sorted(z);
  const float max = z[order[0]];
  size_t kept = z.size();
  if (row.top_k > 0) kept = std::min<size_t>(kept, row.top_k);
  if (row.top_p < 1.0f) {
    unsigned __int128 total = 0;
    for (size_t i = 0; i < kept; ++i) total += Weight(z[order[i]], max);
    // Both sides exact in 2^-149 units: prefix >= top_p · total.
    const double p = row.top_p;
    unsigned __int128 prefix = 0;
    for (size_t i = 0; i < kept; ++i) {
      prefix += Weight(z[order[i]], max);
      const long double exact = static_cast<long double>(p) * static_cast<long double>(total);
      if (static_cast<long double>(prefix) >= exact) {
        kept = i + 1;
        break;
      }
    }
  }
  std::vector<float> result(z.size(), -kInfinity);
  for (size_t i = 0; i < kept; ++i) {
    const float l = z[order[i]];
    if (numerics::ExpF(l - max) >= row.min_p) result[order[i]] = l;
  }
  return result;
}

inline int32_t Draw(const SamplingRow& row, const std::vector<float>& logits) {
  if (row.temperature < kMinTemperature) {
    const std::vector<float> l = Processed(row, logits);
    const int32_t best = Sorted(l)[0];
    return l[best] == -kInfinity ? -1 : best;
  }
  const std::vector<float> z = Filtered(row, logits);
  int32_t best = -1;
  float best_score = -kInfinity;
  for (size_t i = 0; i < z.size(); ++i) {
    if (z[i] == -kInfinity) continue;
    const float score = numerics::GumbelScoreF(
        z[i],
        numerics::PhiloxWord(row.seed, row.position, row.sample_index, static_cast<uint32_t>(i)));
    if (best < 0 || score > best_score) {
      best = static_cast<int32_t>(i);
      best_score = score;
    }
  }
  return best;
}

}  // namespace verbatim::kernels::cpu::reference

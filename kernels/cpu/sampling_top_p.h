// Where the nucleus of top-p ends, exactly, without sorting the vocabulary; only for sampling.cc.
#pragma once

#include <cstdint>

#include "kernels/cpu/sampling_kernels.h"

namespace verbatim::kernels::cpu {

inline int32_t OrderKey(TokenOrder order) {
  return static_cast<int32_t>(static_cast<uint32_t>(order >> 32) ^ 0x80000000u);
}
inline int32_t OrderId(TokenOrder order) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(order));
}

// ceil(top_p · total) without rounding; top_p in (0, 1), total below 2^64.
uint64_t TopPTarget(float top_p, uint64_t total);

// The last token of the shortest prefix, in (z descending, id ascending) order, of the tokens `ids`
// whose weights floor(weights[id] · 2^40) sum to at least target; weights[id] = exp(z[id] − max).
// ids holds every token at or above some logit, max among them. UINT64_MAX when their weights fall
// short of target.
TokenOrder LastOfTopP(const float* z, const float* weights, const int32_t* ids, int64_t count,
                      float max, uint64_t target);

}  // namespace verbatim::kernels::cpu

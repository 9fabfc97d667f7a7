// SwiGLU: y = (g · sigmoid(g)) · u, with g and u the two halves of each input row; sigmoid(g) = 1 /
// (1 + exp(−g)).
#pragma once

#include <cstdint>

#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

struct SwiGluParams {
  NumericMode mode;
  const float* gate_up = nullptr;  // [tokens, 2 · cols]: gate, then up
  float* y = nullptr;              // [tokens, cols]; must not overlap gate_up
  int64_t tokens = 0;
  int64_t cols = 0;
};

}  // namespace verbatim::kernels

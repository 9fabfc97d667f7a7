// Embedding: y[t] = scale · table[token[t]], the stored row decoded to fp32; a scale of 1 leaves
// its bits.
#pragma once

#include <cstdint>

#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

class WeightMatrix;

struct EmbeddingParams {
  NumericMode mode;
  const WeightMatrix* table = nullptr;  // [vocab, hidden]
  const int32_t* tokens = nullptr;      // [num_tokens], each in [0, vocab)
  int64_t num_tokens = 0;
  float scale = 1.0f;  // Granite; one multiplication
  float* y = nullptr;  // [num_tokens, hidden], contiguous
};

}  // namespace verbatim::kernels

// A small random Llama held in memory, so that the suite needs no files.
#pragma once

#include <memory>

#include "model/checkpoint.h"

namespace verbatim::conformance {

// 2 layers, hidden 256, 4 heads of 64 over 2 key/value heads, intermediate 672, vocabulary 509,
// context 2048. Reductions of 256 and 672 elements have 2 and 6 chunks, the last of them short.
// Weights are stored as F32, BF16, Q8_0 and Q4_1, each format in some product. The same bytes in
// every process.
std::unique_ptr<model::Checkpoint> MakeSyntheticModel();

}  // namespace verbatim::conformance

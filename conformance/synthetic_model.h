// Small random models held in memory, so that the suite needs no files.
#pragma once

#include <memory>

#include "model/checkpoint.h"

namespace verbatim::conformance {

// A Llama: 2 layers, hidden 256, 4 heads of 64 over 2 key/value heads, intermediate 672, vocabulary
// 509, context 2048. Reductions of 256 and 672 elements have 2 and 6 chunks, the last of them
// short. Weights are stored as F32, BF16, Q8_0 and Q4_1, each format in some product. The same
// bytes in every process.
std::unique_ptr<model::Checkpoint> MakeSyntheticModel();

// A mixture of experts of hidden size 192, 3 heads of 64 over 1 key/value head, in the same formats
// and vocabulary. Like Mixtral: 4 layers, 2 of 8 experts a token, of intermediate size 416: 4
// chunks, and so as many shards as PINNED knows. `shared`: like Qwen2-MoE: a dense layer and 2 with
// 3 of 12 experts a token, whose weights are not normalised, beside a shared expert with a gate.
std::unique_ptr<model::Checkpoint> MakeSyntheticMixture(bool shared);

// A model that four ranks can share, in nodes of unequal size: 9 heads of 64 over 3 key/value heads
// (5 chunks); a dense layer of intermediate size 608 (5 chunks), then a mixture of 2 of 4 experts
// of size 544 (5 chunks) beside a shared one of size 512 (4 chunks), in the same formats and
// vocabulary.
std::unique_ptr<model::Checkpoint> MakeSyntheticForFourRanks();

}  // namespace verbatim::conformance

// The experts of one layer, made from its dense feed-forward part.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/dtype.h"

namespace verbatim::upcycle {

// The three matrices of a SwiGLU feed-forward part by neuron, in fp32: row j of `gate` and `up` and
// column j of the down projection, which is row j of `down`.
struct NeuronWeights {
  int64_t neurons = 0;
  int64_t hidden = 0;
  std::vector<float> gate, up, down;  // [neurons, hidden]
};

// `gate` and `up` are [neurons, hidden], `down` is [hidden, neurons]; any stored format.
NeuronWeights DecodeNeurons(const kernels::StoredMatrix& gate, const kernels::StoredMatrix& up,
                            const kernels::StoredMatrix& down);

// How much each neuron matters to an expert: the sum over its tokens of weight · (activation ·
// length of the neuron's down row)², from sums of weight · activation² that were measured.
// importance [experts, neurons], in place.
void WeighByDownRows(const NeuronWeights& dense, absl::Span<double> importance);

struct ExpertOptions {
  int64_t num_experts = 4;
  int64_t intermediate_size = 0;  // neurons that an expert keeps
  double noise = 0;               // standard deviation, relative to each neuron's root mean square
  uint64_t seed = 1;
  uint32_t layer = 0;  // takes part in the random words
};

// One expert in bf16, in the shapes of Mixtral.
struct Expert {
  std::vector<int32_t> kept;   // [intermediate_size]: its neurons in the parent, ascending
  std::vector<uint16_t> gate;  // w1 [intermediate_size, hidden]
  std::vector<uint16_t> down;  // w2 [hidden, intermediate_size]
  std::vector<uint16_t> up;    // w3 [intermediate_size, hidden]
};

// Each expert keeps the neurons that matter most to it (ties: the lower index), in the parent's
// order; to each weight of gate row, up row and down row it adds noise · root mean square of that
// row · √3 · u, u uniform in (−1, 1) from Philox keyed by the seed and counted by (layer, expert,
// matrix, neuron, element); then bf16, to nearest even. With every neuron and no noise each expert
// is the parent rounded to bf16. `importance` [experts, neurons].
std::vector<Expert> MakeExperts(const NeuronWeights& dense, absl::Span<const double> importance,
                                const ExpertOptions& options, kernels::cpu::ThreadPool& pool);

// Mean over pairs of experts of ‖A − B‖ / √(‖A‖ · ‖B‖): Frobenius norms over all three matrices, a
// neuron that was not kept being zero.
double MeanRelativeDifference(absl::Span<const Expert> experts, int64_t neurons, int64_t hidden);

}  // namespace verbatim::upcycle

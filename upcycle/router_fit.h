// A router fitted on real activations: spherical k-means over the rows that a layer's feed-forward
// part gets.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"

namespace verbatim::upcycle {

struct RouterFitOptions {
  int64_t num_experts = 4;
  int64_t iterations = 12;
  // The first expert's mean share of its weight and the second's together: how sharp the router
  // is. In (0.5, 1).
  double first_share = 0.62;
  uint64_t seed = 1;
  uint32_t layer = 0;  // takes part in the random words
};

struct RouterFit {
  std::vector<float> weights;     // [num_experts, hidden], each a value that bf16 can hold
  std::vector<int64_t> assigned;  // [num_experts]: rows whose first expert it is
};

// Fits a router without bias to `rows` [n, hidden], n ≥ num_experts ≥ 2.
//
// The direction of the rows' mean, which they share, is taken out; what is left is normalised and
// clustered by cosine (I. S. Dhillon, D. S. Modha, "Concept decompositions for large sparse text
// data using clustering", 2001), begun with k-means++ (D. Arthur, S. Vassilvitskii, 2007). A
// cluster's cosine is multiplied by a scale that shrinks where the cluster is too large: this is
// what balance a router without bias can have. Row e of the router is β · scale · centroid; since
// centroids are at right angles to the mean direction, logits order as the scaled cosines do. β
// makes the mean gap between the two greatest logits ln(first_share / (1 − first_share)).
//
// All sums are in double and in an order that is fixed, so the result does not depend on the pool's
// threads. INVALID_ARGUMENT where rows cannot be told apart (all in one direction).
absl::StatusOr<RouterFit> FitRouter(absl::Span<const float> rows, int64_t hidden,
                                    const RouterFitOptions& options,
                                    kernels::cpu::ThreadPool& pool);

// A token's experts and their weights, as the model will choose them: the top_k greatest logits,
// ties to the lower index, softmax over these.
struct Routing {
  std::vector<int32_t> experts;  // [rows, top_k], first expert first
  std::vector<double> weights;   // [rows, top_k]
};
Routing RouteRows(absl::Span<const float> rows, int64_t hidden, absl::Span<const float> router,
                  int64_t top_k, kernels::cpu::ThreadPool& pool);

}  // namespace verbatim::upcycle

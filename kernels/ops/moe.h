// Mixture of experts: choosing each token's experts, ordering tokens by expert, the experts' matrix
// products, and the weighted sum.
//
// The router's logits are an fp32 product (NumericMode with fp32 activations, weights F32). A
// token's experts are ordered by (logit descending, index ascending), −0 equal to +0 and NaN below
// everything: rank 0 is the first. Without capacity limits nothing about a token depends on other
// tokens.
//
// Weights: e_i = exp(l_i − max l), max over all experts; w_r = scale · (e_r / S). S is the sum over
// the token's experts, added in rank order from +0 (normalise), or over all experts by the
// row-reduction tree. Softmax before or after the choice of the top k, and renormalising, are the
// same two sums.
//
// Capacity (GShard, Lepikhin et al. 2020; Switch, Fedus et al. 2021): an expert takes at most
// `capacity` tokens. Slots are handed out rank by rank, within a rank in row order. A token whose
// expert is full loses that slot (kDrop: its share of the output is missing, the other weights stay
// as they were), or takes the first expert of its order that is neither full nor its own already
// (kNext: a later slot whose expert it took so does the same; weights are those of the experts it
// ends with; a slot is lost when there is none, and counts in S with the expert it was for). Exempt
// rows take their experts first, count towards no capacity and lose nothing.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

class WeightMatrix;

enum class CapacityOverflow : uint8_t { kDrop, kNext };

// Most experts that a router may choose from, and most that a token may have.
inline constexpr int64_t kMaxExperts = 1024;
inline constexpr int64_t kMaxExpertsPerToken = 64;

// What a decode step's routing depends on beside the logits; in the backend's memory, because a
// replayed step has the parameters of the recorded one.
struct MoeStepLimits {
  int32_t tokens;    // rows that there are; those behind are padding, and all of their slots lost
  int32_t capacity;  // in place of a MoeRouteParams::capacity that is not 0
};

struct MoeRouteParams {
  NumericMode mode;
  const float* logits = nullptr;  // [tokens, num_experts], contiguous
  int64_t tokens = 0;             // 0 is a no-op
  int64_t num_experts = 0;        // 1 … kMaxExperts
  int64_t top_k = 0;              // 1 … min(num_experts, kMaxExpertsPerToken)
  bool normalise = true;          // S over the token's experts; else over all
  float scale = 1.0f;
  int64_t capacity = 0;  // tokens that an expert takes; 0: no limit
  CapacityOverflow overflow = CapacityOverflow::kDrop;
  const uint8_t* exempt = nullptr;  // [tokens], non-zero: exempt; null: none is. Device memory.
  const MoeStepLimits* limits = nullptr;  // or null: all rows and `capacity`. Device memory.
  // Out. Rank order; −1: the slot is lost.
  int32_t* experts = nullptr;  // [tokens, top_k]
  // The experts that the token would have without capacity, or null.
  int32_t* wanted = nullptr;  // [tokens, top_k]
  float* weights = nullptr;   // [tokens, top_k]; +0 for a lost slot
};

// Orders the (token, rank) slots by expert, then token: a counting sort. `offsets`[e] … [e + 1] are
// the places of expert e; lost slots have none.
struct MoePermuteParams {
  const int32_t* experts = nullptr;  // [tokens, top_k] from MoeRoute
  int64_t tokens = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  // Out.
  int32_t* offsets = nullptr;   // [num_experts + 1]
  int32_t* token_of = nullptr;  // [tokens · top_k]: by place; 0 from offsets[num_experts] on
  int32_t* place_of = nullptr;  // [tokens, top_k]: by slot; −1: lost
  // Counters that the call adds its slots to, or null: those of each expert, then lost ones, then
  // those whose expert is not the wanted one. Rows behind limits->tokens count in none.
  int64_t* totals = nullptr;        // [num_experts + 2]
  const int32_t* wanted = nullptr;  // [tokens, top_k] from MoeRoute, or null: the same as experts
  const MoeStepLimits* limits = nullptr;  // or null: all rows count. Device memory.
};

// For every expert e and its places p: y[p, n] = sum over k of x[row(p), k] · W_e[n, k], row(p) =
// rows[p] or p itself. Each product in the order of Gemm (kernels/ops/gemm.h), so under a strong
// policy a token's bits do not depend on how many tokens its expert got. THROUGHPUT may choose by
// the number of an expert's tokens. Places from offsets[num_experts] on are left as they are.
struct GroupedGemmParams {
  NumericMode mode;
  absl::Span<const WeightMatrix* const> weights;  // [num_experts] of one shape [n, k]; host memory
  const int32_t* offsets = nullptr;               // [num_experts + 1], ascending from 0
  int64_t max_places = 0;                         // rows of y; at least offsets[num_experts]
  const float* x = nullptr;                       // row stride x_stride elements
  int64_t x_rows = 0;
  int64_t x_stride = 0;
  const int32_t* rows = nullptr;  // [max_places], each in [0, x_rows), or null
  float* y = nullptr;             // [max_places, n], row stride y_stride; must not overlap x
  int64_t y_stride = 0;
  bool round_output = false;  // as in GemmParams
};

// y[t] = residual[t] + a, where a starts at +0 and takes a = fma(w[t, r], d[place(t, r)], a) for
// ascending rank r, lost slots left out, then a = fma(g[t], shared[t], a) for a shared expert; g =
// sigmoid(shared_gate[t]), or 1 without a gate.
struct MoeCombineParams {
  NumericMode mode;
  const float* expert_rows = nullptr;  // [places, cols], contiguous: the experts' outputs
  const int32_t* place_of = nullptr;   // [tokens, top_k]
  const float* weights = nullptr;      // [tokens, top_k]
  int64_t tokens = 0;
  int64_t top_k = 0;
  int64_t cols = 0;
  const float* shared = nullptr;       // [tokens, cols] or null
  const float* shared_gate = nullptr;  // [tokens] logits, or null
  const float* residual = nullptr;     // [tokens, cols]; may be y itself
  float* y = nullptr;                  // [tokens, cols]
  bool round_output = false;           // THROUGHPUT with bf16 activations: round y to bf16
};

}  // namespace verbatim::kernels

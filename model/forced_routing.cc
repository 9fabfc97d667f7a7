// The weights of experts that the router did not choose.
#include "model/forced_routing.h"

#include "kernels/numerics/elementary.h"
#include "kernels/numerics/reduction_tree.h"

namespace verbatim::model {

void WeighExperts(const Weighing& weighing, const float* logits, const int32_t* wanted,
                  const int32_t* experts, float* weights) {
  const float max = logits[wanted[0]];
  const auto exponential = [&](int32_t expert) { return numerics::ExpF(logits[expert] - max); };
  float sum = 0.0f;
  for (int64_t r = 0; r < weighing.top_k; ++r) {
    weights[r] = exponential(experts[r] >= 0 ? experts[r] : wanted[r]);
    sum += weights[r];
  }
  if (!weighing.normalise) {
    std::vector<float> all(static_cast<size_t>(weighing.num_experts));
    for (size_t e = 0; e < all.size(); ++e) all[e] = exponential(static_cast<int32_t>(e));
    sum = numerics::RowSum(all.data(), weighing.num_experts);
  }
  for (int64_t r = 0; r < weighing.top_k; ++r) {
    weights[r] = experts[r] >= 0 ? weighing.scale * (weights[r] / sum) : 0.0f;
  }
}

}  // namespace verbatim::model

// Where the tokens of a model's mixtures of experts went.
#include "model/moe_statistics.h"

#include <algorithm>
#include <numeric>

namespace verbatim::model {

double MoeStatistics::Imbalance() const {
  const int64_t total =
      std::accumulate(tokens_per_expert.begin(), tokens_per_expert.end(), int64_t{0});
  if (total == 0) return 0;
  const int64_t most = *std::max_element(tokens_per_expert.begin(), tokens_per_expert.end());
  return static_cast<double>(most) * static_cast<double>(tokens_per_expert.size()) /
         static_cast<double>(total);
}

}  // namespace verbatim::model

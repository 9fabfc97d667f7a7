// Turns the knobs of a variant into requests: subjects, neighbours, and what came before them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conformance/expert_tokens.h"
#include "conformance/random.h"
#include "conformance/setup.h"
#include "conformance/trial_engine.h"
#include "conformance/workload.h"
#include "kernels/ops/policy.h"

namespace verbatim::conformance {

struct Waves {
  std::vector<std::vector<WaveItem>> before;  // fill the prefix cache, one wave after the other
  std::vector<WaveItem> items;
  std::vector<int> subjects;  // parallel to items: index of the subject, or -1 for a neighbour
};

class WaveBuilder {
 public:
  // *salts counts the cache salts used so far, over all builders of an engine.
  WaveBuilder(const Workload& workload, const ExpertTokens& experts, kernels::Policy policy,
              int32_t poison_token, int64_t* salts, Random* random)
      : workload_(workload),
        experts_(experts),
        policy_(policy),
        poison_token_(poison_token),
        salts_(salts),
        random_(random) {}

  // `members`: indices of subjects, in order of arrival.
  Waves Build(const Variant& variant, const std::vector<size_t>& members);

 private:
  std::string NewSalt();
  // Like subject `like` where the kind is like a subject.
  WaveItem Neighbour(const TrafficSetup& traffic, Neighbours kind, size_t like);
  std::vector<WaveItem> WarmUp(const TrafficSetup& traffic, const std::vector<size_t>& members,
                               const std::string& salt);

  const Workload& workload_;
  const ExpertTokens& experts_;
  const kernels::Policy policy_;
  const int32_t poison_token_;
  int64_t* const salts_;
  Random* const random_;
};

// THROUGHPUT for a strong policy, PORTABLE for THROUGHPUT; with `strong` a strong policy in any
// case.
kernels::Policy OtherPolicy(kernels::Policy policy, bool strong = false);

}  // namespace verbatim::conformance

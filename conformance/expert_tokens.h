// Finds the tokens of which prompts are made that crowd a mixture's experts, or spread over them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "conformance/trial_engine.h"
#include "conformance/workload.h"

namespace verbatim::conformance {

// Chosen by running the model on candidates and watching its router.
//
// A prompt that repeats one token sends all of its rows where the first one goes: their values are
// equal, so attention returns that value at every position, and rows are equal but for rounding.
class ExpertTokens {
 public:
  // For the workload's subjects, with the candidates that its prompts are made of. Empty for a
  // dense model.
  static absl::StatusOr<ExpertTokens> Probe(const LoadedModel& model, const Workload& workload);

  // False for a dense model, where the following must not be called.
  bool known() const { return !spread_.empty(); }
  // Goes, in every layer, where most candidates go.
  int32_t popular() const { return popular_; }
  // Goes where the last rows of the subject's prompt go.
  int32_t LikeSubject(size_t subject) const { return like_subject_[subject]; }
  // Together as even over the experts of all layers as candidates can be.
  const std::vector<int32_t>& spread() const { return spread_; }

 private:
  int32_t popular_ = -1;
  std::vector<int32_t> like_subject_, spread_;
};

}  // namespace verbatim::conformance

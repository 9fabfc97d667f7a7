// The fragility of the answers to one request, as the message that reports it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/generation.h"
#include "fragility/score.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::server {

class FragilityScores {
 public:
  // `calibration` must outlive the scores.
  FragilityScores(const fragility::Calibration& calibration,
                  const engine::GenerationRequest& request);

  void Add(int32_t sample, const std::vector<float>& top_margins);
  // The report on a sample that has ended.
  v1::Fragility Take(int32_t sample);

 private:
  const fragility::Calibration& calibration_;
  std::string note_;
  bool strong_ = false;  // a rerun differs with probability 0
  bool gives_probability_ = true;
  std::map<int32_t, fragility::Score> scores_;
};

}  // namespace verbatim::server

// The fragility of one answer, token by token.
#pragma once

#include <cstdint>

#include "fragility/calibration.h"

namespace verbatim::fragility {

class Score {
 public:
  // `calibration` must outlive the score.
  explicit Score(const Calibration& calibration) : calibration_(&calibration) {}

  // The top-two margin of the next token's raw logits.
  void Add(float margin);

  int64_t tokens() const { return tokens_; }
  int64_t fragile_tokens() const { return fragile_tokens_; }  // margin <= fragile_margin
  // Sum over the tokens of -log(1 - P(drop >= margin)).
  double hazard() const { return hazard_; }

  // That a rerun of a greedy request under load gives other tokens: 1 - exp(-rate * hazard). The
  // interval is that of the rate.
  struct Probability {
    double value = 0, low = 0, high = 0;
  };
  Probability probability() const;

 private:
  const Calibration* calibration_;
  int64_t tokens_ = 0, fragile_tokens_ = 0;
  double hazard_ = 0;
};

}  // namespace verbatim::fragility

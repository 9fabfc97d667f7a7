// Sums over an answer's margins.
#include "fragility/score.h"

#include <algorithm>
#include <cmath>

namespace verbatim::fragility {
namespace {

// A table of few samples must not make one token certain to move.
constexpr double kSurestMove = 0.999;

}  // namespace

void Score::Add(float margin) {
  ++tokens_;
  if (margin <= calibration_->fragile_margin) ++fragile_tokens_;
  hazard_ -= std::log1p(-std::min(calibration_->drift.Survival(margin), kSurestMove));
}

Score::Probability Score::probability() const {
  const auto of = [this](double rate) { return -std::expm1(-rate * hazard_); };
  const Rate& rate = calibration_->rate;
  return {of(rate.value), of(rate.low), of(rate.high)};
}

}  // namespace verbatim::fragility

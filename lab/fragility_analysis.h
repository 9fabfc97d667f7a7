// From answers and their reruns to a calibration, and to how well it predicts answers it has not
// seen.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "client/statistics.h"
#include "fragility/calibration.h"
#include "fragility/comparison.h"

namespace verbatim::lab {

// All answers to one prompt: the first alone, the others under load. At least three.
struct PromptAnswers {
  std::vector<fragility::Generation> answers;
};

// What was said of one answer before its rerun was looked at.
struct Prediction {
  int64_t prompt = 0;
  double hazard = 0;
  double probability = 0, low = 0, high = 0;
  int64_t tokens = 0, fragile_tokens = 0;
  bool differs = false;           // the rerun
  bool at_fragile_token = false;  // where it first differs
};

struct ReliabilityBin {
  double from = 0, to = 0;  // probabilities in [from, to); the last bin has its end
  int64_t answers = 0;
  double mean_predicted = 0;
  int64_t differed = 0;
  client::Interval observed;  // Wilson's, of the share that differed
};

struct Reliability {
  std::vector<ReliabilityBin> bins;  // also the empty ones
  int64_t answers = 0, prompts = 0;
  double expected = 0, expected_low = 0, expected_high = 0;  // answers that differ, summed
  int64_t differed = 0;
  // 95 % of what `differed` would be in other draws of as many prompts, by a bootstrap over them.
  client::Interval differed_interval;
  double brier = 0;            // mean squared error of the probabilities
  double brier_base_rate = 0;  // of saying the share that differed, every time
  int64_t tokens = 0, fragile_tokens = 0;
  int64_t first_differences_at_fragile_tokens = 0;
};

struct FragilityAnalysis {
  fragility::Calibration calibration;  // weights and configuration are left empty
  std::vector<Prediction> calibration_half, held_out;
  Reliability reliability;  // of held_out
};

// Every answer is paired with a rerun: another answer to its prompt that was generated under load,
// drawn by the seed. Prompts of even index calibrate, those of odd
// index are held out. INVALID_ARGUMENT when a prompt has fewer than three answers or the rate
// cannot be fitted.
absl::StatusOr<FragilityAnalysis> AnalyzeFragility(const std::vector<PromptAnswers>& prompts,
                                                   uint64_t seed);

Reliability MeasureReliability(const std::vector<Prediction>& predictions, uint64_t seed);

}  // namespace verbatim::lab

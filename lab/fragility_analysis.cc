// Halves, pairs, bins and scores.
#include "lab/fragility_analysis.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fragility/rate_fit.h"
#include "fragility/score.h"

namespace verbatim::lab {
namespace {

constexpr int kResamples = 1000;
constexpr double kBinEdges[] = {0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1};

struct Pair {
  int64_t prompt;
  const fragility::Generation* answer;
  fragility::Comparison comparison;
};

// The rerun of each answer is another one under load, drawn at random: rounds have loads of their
// own, and answers of similar loads differ less.
std::vector<Pair> PairsOf(int64_t prompt, const PromptAnswers& of, std::mt19937_64* random) {
  std::vector<Pair> pairs;
  for (size_t i = 0; i < of.answers.size(); ++i) {
    const size_t last = of.answers.size() - 1 - (i > 0 ? 1 : 0);
    size_t rerun = std::uniform_int_distribution<size_t>(1, last)(*random);
    if (i > 0 && rerun >= i) ++rerun;
    pairs.push_back({prompt, &of.answers[i], Compare(of.answers[i], of.answers[rerun])});
  }
  return pairs;
}

Prediction Predict(const Pair& pair, const fragility::Calibration& calibration) {
  fragility::Score score(calibration);
  for (float margin : pair.answer->top_margins) score.Add(margin);
  const fragility::Score::Probability probability = score.probability();
  Prediction prediction = {.prompt = pair.prompt,
                           .hazard = score.hazard(),
                           .probability = probability.value,
                           .low = probability.low,
                           .high = probability.high,
                           .tokens = score.tokens(),
                           .fragile_tokens = score.fragile_tokens(),
                           .differs = pair.comparison.differs()};
  if (prediction.differs) {
    const auto at = static_cast<size_t>(*pair.comparison.first_difference);
    prediction.at_fragile_token = at < pair.answer->top_margins.size() &&
                                  pair.answer->top_margins[at] <= calibration.fragile_margin;
  }
  return prediction;
}

client::Interval BootstrapDiffered(const std::vector<Prediction>& predictions, uint64_t seed) {
  std::map<int64_t, int64_t> by_prompt;
  for (const Prediction& p : predictions) by_prompt[p.prompt] += p.differs ? 1 : 0;
  if (by_prompt.empty()) return {};
  std::vector<int64_t> counts;
  for (const auto& [prompt, differed] : by_prompt) counts.push_back(differed);
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<size_t> pick(0, counts.size() - 1);
  std::vector<double> totals;
  for (int i = 0; i < kResamples; ++i) {
    int64_t total = 0;
    for (size_t j = 0; j < counts.size(); ++j) total += counts[pick(random)];
    totals.push_back(static_cast<double>(total));
  }
  return {client::Percentile(totals, 2.5), client::Percentile(totals, 97.5)};
}

}  // namespace

Reliability MeasureReliability(const std::vector<Prediction>& predictions, uint64_t seed) {
  Reliability out;
  for (size_t i = 0; i + 1 < std::size(kBinEdges); ++i) {
    out.bins.push_back({.from = kBinEdges[i], .to = kBinEdges[i + 1]});
  }
  std::map<int64_t, int64_t> prompts;
  for (const Prediction& p : predictions) {
    ++prompts[p.prompt];
    const auto edge = std::upper_bound(std::begin(kBinEdges), std::end(kBinEdges), p.probability);
    const auto at = static_cast<size_t>(edge - std::begin(kBinEdges)) - 1;
    ReliabilityBin& bin = out.bins[std::min(at, out.bins.size() - 1)];
    ++bin.answers;
    bin.mean_predicted += p.probability;
    ++out.answers;
    out.expected += p.probability;
    out.expected_low += p.low;
    out.expected_high += p.high;
    out.tokens += p.tokens;
    out.fragile_tokens += p.fragile_tokens;
    const double outcome = p.differs ? 1 : 0;
    out.brier += (p.probability - outcome) * (p.probability - outcome);
    if (!p.differs) continue;
    ++bin.differed;
    ++out.differed;
    if (p.at_fragile_token) ++out.first_differences_at_fragile_tokens;
  }
  for (ReliabilityBin& bin : out.bins) {
    if (bin.answers > 0) bin.mean_predicted /= static_cast<double>(bin.answers);
    bin.observed = client::WilsonInterval(bin.differed, bin.answers);
  }
  out.prompts = static_cast<int64_t>(prompts.size());
  out.differed_interval = BootstrapDiffered(predictions, seed);
  if (out.answers == 0) return out;
  const auto answers = static_cast<double>(out.answers);
  const double share = static_cast<double>(out.differed) / answers;
  out.brier /= answers;
  out.brier_base_rate = share * (1 - share);
  return out;
}

absl::StatusOr<FragilityAnalysis> AnalyzeFragility(const std::vector<PromptAnswers>& prompts,
                                                   uint64_t seed) {
  FragilityAnalysis out;
  std::vector<Pair> halves[2];
  std::mt19937_64 random(seed);
  for (size_t p = 0; p < prompts.size(); ++p) {
    if (prompts[p].answers.size() < 3) {
      return absl::InvalidArgumentError(absl::StrCat(
          "prompt ", p, " has ", prompts[p].answers.size(), " answers, not 3 or more"));
    }
    std::vector<Pair> pairs = PairsOf(static_cast<int64_t>(p), prompts[p], &random);
    std::move(pairs.begin(), pairs.end(), std::back_inserter(halves[p % 2]));
  }
  fragility::Calibration& calibration = out.calibration;
  for (const Pair& pair : halves[0]) {
    for (double drop : pair.comparison.drops) calibration.drift.Add(drop);
  }
  calibration.fragile_margin = calibration.drift.DriftQuantile(fragility::kFragileQuantile);
  calibration.prompts = static_cast<int64_t>((prompts.size() + 1) / 2);
  calibration.answers = static_cast<int64_t>(halves[0].size());

  std::vector<fragility::Observation> observations;
  for (const Pair& pair : halves[0]) {
    const Prediction prediction = Predict(pair, calibration);
    observations.push_back({prediction.hazard, prediction.differs, prediction.prompt});
  }
  absl::StatusOr<fragility::Rate> rate =
      fragility::FitRateWithInterval(observations, kResamples, seed);
  if (!rate.ok()) return rate.status();
  calibration.rate = *rate;
  for (const Pair& pair : halves[0]) out.calibration_half.push_back(Predict(pair, calibration));
  for (const Pair& pair : halves[1]) out.held_out.push_back(Predict(pair, calibration));
  out.reliability = MeasureReliability(out.held_out, seed);
  return out;
}

}  // namespace verbatim::lab

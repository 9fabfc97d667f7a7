// Maximum likelihood by bisection, and the bootstrap around it.
#include "fragility/rate_fit.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

namespace verbatim::fragility {
namespace {

constexpr double kSmallestRate = 1e-9;
constexpr double kSmallestHazard = 1e-12;           // an answer that differed had some chance of it
constexpr double kOneInForty = 3.6888794541139363;  // -log(0.025)

// The derivative of the log-likelihood, sum over those that differ of log(1 - exp(-a s)) minus a
// times the sum of s over those that do not. Falls with a.
double Slope(double rate, const std::vector<double>& differing, double same_hazard) {
  double slope = -same_hazard;
  for (double hazard : differing) slope += hazard / std::expm1(rate * hazard);
  return slope;
}

double Fit(const std::vector<double>& differing, double same_hazard) {
  if (differing.empty()) return 0;
  if (Slope(kLargestRate, differing, same_hazard) >= 0) return kLargestRate;
  double low = std::log(kSmallestRate), high = std::log(kLargestRate);
  while (high - low > 1e-7) {
    const double middle = 0.5 * (low + high);
    (Slope(std::exp(middle), differing, same_hazard) > 0 ? low : high) = middle;
  }
  return std::exp(0.5 * (low + high));
}

// What the likelihood needs of some observations.
struct Evidence {
  std::vector<double> differing;
  double same_hazard = 0;

  void Add(const Observation& observation) {
    if (observation.differs) {
      differing.push_back(std::max(observation.hazard, kSmallestHazard));
    } else {
      same_hazard += observation.hazard;
    }
  }
  void Add(const Evidence& other) {
    differing.insert(differing.end(), other.differing.begin(), other.differing.end());
    same_hazard += other.same_hazard;
  }
};

}  // namespace

double FitRate(const std::vector<Observation>& observations) {
  Evidence evidence;
  for (const Observation& observation : observations) evidence.Add(observation);
  return Fit(evidence.differing, evidence.same_hazard);
}

absl::StatusOr<Rate> FitRateWithInterval(const std::vector<Observation>& observations,
                                         int resamples, uint64_t seed) {
  std::map<int64_t, Evidence> by_prompt;
  double total_hazard = 0;
  bool any_differs = false;
  for (const Observation& observation : observations) {
    by_prompt[observation.prompt].Add(observation);
    total_hazard += observation.hazard;
    any_differs |= observation.differs;
  }
  if (!(total_hazard > 0)) {
    return absl::InvalidArgumentError(
        "no answer has a margin within the drift seen: there is nothing to fit a rate to");
  }
  Rate rate;
  rate.value = FitRate(observations);
  if (!any_differs) {
    rate.high = std::min(kOneInForty / total_hazard, kLargestRate);
    return rate;
  }
  std::vector<const Evidence*> prompts;
  for (const auto& [prompt, evidence] : by_prompt) prompts.push_back(&evidence);
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<size_t> pick(0, prompts.size() - 1);
  std::vector<double> rates;
  for (int i = 0; i < resamples; ++i) {
    Evidence drawn;
    for (size_t j = 0; j < prompts.size(); ++j) drawn.Add(*prompts[pick(random)]);
    rates.push_back(Fit(drawn.differing, drawn.same_hazard));
  }
  std::sort(rates.begin(), rates.end());
  const auto at = [&](double q) {
    return rates[static_cast<size_t>(std::lround(q * static_cast<double>(rates.size() - 1)))];
  };
  rate.low = rates.empty() ? rate.value : std::min(at(0.025), rate.value);
  rate.high = rates.empty() ? rate.value : std::max(at(0.975), rate.value);
  return rate;
}

}  // namespace verbatim::fragility

// Counting over thresholds, and interpolation between them.
#include "fragility/drift_table.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace verbatim::fragility {
namespace {

constexpr int kFirstExponent = -24;
constexpr int kLast = DriftTable::kThresholds - 1;

absl::Status CheckCounts(const char* name, int64_t samples, const DriftTable::Counts& counts) {
  int64_t most = samples;
  for (int k = 0; k < DriftTable::kThresholds; ++k) {
    if (counts[k] < 0 || counts[k] > most) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, "[", k, "]: ", counts[k], " is not in [0, ", most, "]"));
    }
    most = counts[k];
  }
  return absl::OkStatus();
}

}  // namespace

double DriftTable::Threshold(int k) { return std::exp2(kFirstExponent + 0.5 * k); }

absl::StatusOr<DriftTable> DriftTable::FromCounts(int64_t samples, const Counts& drops_at_least,
                                                  const Counts& drifts_at_least) {
  if (samples < 0) {
    return absl::InvalidArgumentError(absl::StrCat("samples: ", samples, " is negative"));
  }
  if (absl::Status status = CheckCounts("drops_at_least", samples, drops_at_least); !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckCounts("drifts_at_least", samples, drifts_at_least);
      !status.ok()) {
    return status;
  }
  for (int k = 0; k < kThresholds; ++k) {
    if (drops_at_least[k] > drifts_at_least[k]) {
      return absl::InvalidArgumentError(absl::StrCat("drops_at_least[", k, "]: ", drops_at_least[k],
                                                     " is more than the ", drifts_at_least[k],
                                                     " drifts of that size"));
    }
  }
  DriftTable table;
  table.samples_ = samples;
  table.drops_at_least_ = drops_at_least;
  table.drifts_at_least_ = drifts_at_least;
  return table;
}

void DriftTable::Add(double drop) {
  if (!std::isfinite(drop)) return;
  ++samples_;
  for (int k = 0; k < kThresholds && std::abs(drop) >= Threshold(k); ++k) {
    ++drifts_at_least_[k];
    if (drop > 0) ++drops_at_least_[k];
  }
}

double DriftTable::Survival(double margin) const {
  if (samples_ == 0) return 0;
  const auto share = [&](int k) {
    return static_cast<double>(drops_at_least_[k]) / static_cast<double>(samples_);
  };
  if (!(margin > Threshold(0))) return share(0);
  if (margin > Threshold(kLast)) return 0;
  const double place = 2 * (std::log2(margin) - kFirstExponent);
  const int k = std::min(static_cast<int>(place), kLast - 1);
  return std::lerp(share(k), share(k + 1), place - k);
}

double DriftTable::DriftQuantile(double q) const {
  // The least margin above which at most this many drifts lie.
  const double above = (1 - q) * static_cast<double>(samples_);
  if (static_cast<double>(drifts_at_least_[0]) <= above) return Threshold(0);
  for (int k = 1; k < kThresholds; ++k) {
    const auto here = static_cast<double>(drifts_at_least_[k]);
    if (here > above) continue;
    const auto before = static_cast<double>(drifts_at_least_[k - 1]);
    return Threshold(k - 1) * std::exp2(0.5 * (before - above) / (before - here));
  }
  return Threshold(kLast);
}

}  // namespace verbatim::fragility

// How far load moves the gap between the two best logits, as counts over fixed thresholds.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"

namespace verbatim::fragility {

// A sample is one token of an answer that was generated twice from the same tokens. Its drop is the
// top-two margin of the answer minus that of the rerun, in units of logits: negative when the
// margin grew, and the sum of both margins when the rerun chose another token, since the gap
// between the answer's token and the best other one then went from +margin to -margin.
class DriftTable {
 public:
  // Thresholds t_k = 2^(-24 + k/2), k = 0 … 60: from the rounding of a logit near 1 to 64.
  static constexpr int kThresholds = 61;
  using Counts = std::array<int64_t, kThresholds>;
  static double Threshold(int k);

  DriftTable() = default;
  // INVALID_ARGUMENT naming "samples", "drops_at_least" or "drifts_at_least" when no samples could
  // give these counts: negative, rising with the threshold, more than `samples`, or more drops than
  // drifts.
  static absl::StatusOr<DriftTable> FromCounts(int64_t samples, const Counts& drops_at_least,
                                               const Counts& drifts_at_least);

  // A drop that is not finite is not counted.
  void Add(double drop);

  // P(drop >= margin): falls with the margin; linear in the margin's logarithm between thresholds,
  // constant below the first and 0 above the last. 0 without samples.
  double Survival(double margin) const;

  // The q-quantile of |drop|, 0 <= q <= 1, interpolated in the same way; never below the first
  // threshold or above the last.
  double DriftQuantile(double q) const;

  int64_t samples() const { return samples_; }
  const Counts& drops_at_least() const { return drops_at_least_; }    // drop >= t_k
  const Counts& drifts_at_least() const { return drifts_at_least_; }  // |drop| >= t_k

 private:
  int64_t samples_ = 0;
  Counts drops_at_least_ = {};
  Counts drifts_at_least_ = {};
};

}  // namespace verbatim::fragility

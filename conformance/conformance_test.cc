// Runs the short form of the suite: every perturbation, both strong policies, synthetic models.
#include <gtest/gtest.h>

#include "conformance/suite_presets.h"

namespace verbatim::conformance {
namespace {

std::string Describe(const Cell& cell) {
  std::string out = cell.policy + ", " + cell.perturbation;
  if (cell.result.first.has_value()) {
    const FirstDifference& first = *cell.result.first;
    out += ": " + first.variant + ", " + first.request + ", " + first.what + " of " + first.where +
           " row " + std::to_string(first.index) + ": " + first.reference + " against " +
           first.observed;
  }
  return out;
}

void ExpectNoDifference(const SuiteOptions& options, int64_t min_rows) {
  const absl::StatusOr<std::vector<Cell>> cells = RunSuite(options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  int64_t rows = 0;
  for (const Cell& cell : *cells) {
    EXPECT_TRUE(cell.exercised) << Describe(cell);
    EXPECT_EQ(cell.mismatches(), 0) << Describe(cell);
    rows += cell.result.rows_compared;
    std::printf("%-20s %-36s %8lld rows %6.2f s\n", cell.policy.c_str(), cell.perturbation.c_str(),
                static_cast<long long>(cell.result.rows_compared), cell.seconds);
  }
  EXPECT_GT(rows, min_rows);
}

TEST(ConformanceTest, StrongPoliciesKeepEveryBitUnderEveryPerturbation) {
  ExpectNoDifference(ShortSuite(), 10000);
}

TEST(ConformanceTest, MixturesOfExpertsDoToo) {
  ExpectNoDifference(ShortMixtureSuite(false), 10000);
}

TEST(ConformanceTest, FourRanksDoToo) { ExpectNoDifference(FourRanksSuite(), 1000); }

TEST(ConformanceTest, MixturesWithASharedExpertDoToo) {
  ExpectNoDifference(ShortMixtureSuite(true), 1000);
}

}  // namespace
}  // namespace verbatim::conformance

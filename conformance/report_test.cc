// Tests what the report counts and when it says that the suite passed.
#include "conformance/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace verbatim::conformance {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Cell OneCell(const std::string& policy, bool promised, int64_t rows, int64_t differing) {
  Cell cell;
  cell.model = "m";
  cell.policy = policy;
  cell.perturbation = "batch size";
  cell.promised = promised;
  cell.result.requests = 4;
  cell.result.rows_compared = rows;
  cell.result.rows_differing = differing;
  if (differing > 0) {
    cell.result.first = FirstDifference{.variant = "B=9",
                                        .request = "subject 3",
                                        .what = "logits",
                                        .where = "output",
                                        .index = 5,
                                        .reference = "x",
                                        .observed = "y"};
  }
  return cell;
}

TEST(ReportTest, ThroughputMayMoveAndStrongPoliciesMayNot) {
  Report report;
  report.cells = {OneCell("portable", true, 100, 0), OneCell("throughput", false, 50, 10)};
  EXPECT_EQ(report.comparisons(), 100);
  EXPECT_EQ(report.mismatches(), 0);
  EXPECT_TRUE(report.passed());
  EXPECT_THAT(EffectTable(report), HasSubstr("10 of 50, 20.0 % [11.2, 33.0]"));
  EXPECT_THAT(PromiseTable(report), Not(HasSubstr("BROKEN")));

  report.cells.push_back(OneCell("pinned", true, 100, 1));
  EXPECT_EQ(report.mismatches(), 1);
  EXPECT_FALSE(report.passed());
  EXPECT_THAT(PromiseTable(report), HasSubstr("BROKEN"));
  EXPECT_THAT(PromiseTable(report),
              HasSubstr("first: B=9, subject 3, logits of output row 5: x against y"));
}

TEST(ReportTest, WhatDidNotHappenWasNotShown) {
  Report report;
  report.cells = {OneCell("portable", true, 100, 0)};
  report.cells[0].exercised = false;
  EXPECT_FALSE(report.passed());
  EXPECT_THAT(PromiseTable(report), HasSubstr("DID NOT HAPPEN"));
}

TEST(ReportTest, JsonHoldsTotalsAndCells) {
  Report report;
  report.form = "short";
  report.cells = {OneCell("pinned", true, 100, 2), OneCell("throughput", false, 50, 10)};
  report.cells[0].not_promised = {"scalar: numerics id other"};
  const nlohmann::json json = ReportJson(report);
  EXPECT_EQ(json["comparisons"], 100);
  EXPECT_EQ(json["mismatches"], 2);
  EXPECT_EQ(json["passed"], false);
  EXPECT_EQ(json["rows_compared_by_policy"]["pinned"], 100);
  ASSERT_EQ(json["cells"].size(), 2u);
  EXPECT_EQ(json["cells"][0]["perturbation"], "batch size");
  EXPECT_EQ(json["cells"][0]["first_difference"]["variant"], "B=9");
  EXPECT_EQ(json["cells"][0]["not_promised"][0], "scalar: numerics id other");
  EXPECT_EQ(json["cells"][1]["rows_moved"]["count"], 10);
  EXPECT_NEAR(json["cells"][1]["rows_moved"]["wilson_95_percent"][0].get<double>(), 0.112, 0.001);
}

}  // namespace
}  // namespace verbatim::conformance

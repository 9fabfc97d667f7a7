// Comparison of receipts: every field is told apart and put on its side.
#include "receipt/comparison.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "receipt/receipt_test_support.h"

namespace verbatim::receipt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> Names(const std::vector<FieldDifference>& differences) {
  std::vector<std::string> names;
  for (const FieldDifference& difference : differences) names.push_back(difference.field);
  return names;
}

TEST(ComparisonTest, EqualReceiptsAgree) {
  const Comparison comparison = Compare(SampleReceipt(), SampleReceipt());
  EXPECT_THAT(comparison.inputs, IsEmpty());
  EXPECT_THAT(comparison.outputs, IsEmpty());
  EXPECT_THAT(comparison.Verdict(), HasSubstr("equal in every token"));
}

TEST(ComparisonTest, WhatDecidesNothingIsNoDifference) {
  Receipt other = SampleReceipt();
  other.model = "renamed";
  other.server_version = "9.9.9";
  other.sampling.n = 1;
  other.policy = "portable";  // the same numerics id: the same bits
  const Comparison comparison = Compare(SampleReceipt(), other);
  EXPECT_THAT(comparison.inputs, IsEmpty());
  EXPECT_THAT(comparison.outputs, IsEmpty());
}

TEST(ComparisonTest, EveryInputIsNamed) {
  const std::vector<std::pair<std::string, std::function<void(Receipt&)>>> cases = {
      {"contract_version", [](Receipt& r) { r.contract_version = 2; }},
      {"weights_sha256", [](Receipt& r) { r.weights_sha256[0] = 'f'; }},
      {"tokenizer_sha256", [](Receipt& r) { r.tokenizer_sha256[0] = 'f'; }},
      {"numerics_id", [](Receipt& r) { r.numerics_id = "v1/other"; }},
      {"prompt_token_ids", [](Receipt& r) { r.prompt_token_ids[2] = 301; }},
      {"sampling.temperature", [](Receipt& r) { r.sampling.temperature = 0.8f; }},
      {"sampling.stop", [](Receipt& r) { r.sampling.stop.pop_back(); }},
      {"sampling.logit_bias", [](Receipt& r) { r.sampling.logit_bias[1].second = 2.0f; }},
      {"seed", [](Receipt& r) { r.seed = 1; }},
      {"sample_index", [](Receipt& r) { r.sample_index = 0; }},
  };
  for (const auto& [field, change] : cases) {
    Receipt other = SampleReceipt();
    change(other);
    other.output_token_ids[1] = 60;
    const Comparison comparison = Compare(SampleReceipt(), other);
    EXPECT_THAT(Names(comparison.inputs), ElementsAre(field));
    EXPECT_THAT(comparison.Verdict(), HasSubstr("not the same request: " + field + " differs"));
    EXPECT_THAT(comparison.Verdict(), HasSubstr("the tokens at 1"));
  }
}

TEST(ComparisonTest, PolicyCountsBesideItsNumericsId) {
  Receipt other = SampleReceipt();
  other.policy = "portable";
  other.numerics_id = "v1/other";
  EXPECT_THAT(Names(Compare(SampleReceipt(), other).inputs), ElementsAre("policy", "numerics_id"));
}

TEST(ComparisonTest, EqualInputsWithOtherOutputsAreAContradiction) {
  Receipt other = SampleReceipt();
  other.row_fingerprints[1].a ^= 1;
  other.output_token_ids.pop_back();
  const Comparison comparison = Compare(SampleReceipt(), other);
  EXPECT_THAT(Names(comparison.outputs), ElementsAre("row_fingerprints", "output_token_ids"));
  EXPECT_EQ(comparison.first_row, 1);
  EXPECT_EQ(comparison.first_token, 2);
  EXPECT_THAT(comparison.outputs[1].b, HasSubstr("ends after 2"));
  EXPECT_THAT(comparison.Verdict(), HasSubstr("at least one of the receipts is untrue"));
}

}  // namespace
}  // namespace verbatim::receipt

// Tests of a calibration's file: what it writes it reads, and it reads nothing else.
#include "fragility/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace verbatim::fragility {
namespace {

using ::testing::HasSubstr;

Calibration Example() {
  Calibration c;
  c.weights_sha256 = std::string(64, 'a');
  c.configuration = ConfigurationName("cpu scalar, 1 thread", "bfloat16", "float32");
  for (double drop : {0.01, -0.02, 0.5, 0.0}) c.drift.Add(drop);
  c.fragile_margin = 0.125;
  c.rate = {.value = 0.75, .low = 0.5, .high = 1.5};
  c.prompts = 3;
  c.answers = 9;
  return c;
}

std::string ErrorOf(const std::string& text) {
  const auto read = FromJson(text);
  return read.ok() ? "no error" : std::string(read.status().message());
}

// The example's file with one piece of text replaced.
std::string ErrorWith(const std::string& from, const std::string& to) {
  const std::string text = ToJson(Example());
  EXPECT_THAT(text, HasSubstr(from));
  return ErrorOf(absl::StrReplaceAll(text, {{from, to}}));
}

TEST(Calibration, ComesBackFromItsJson) {
  const Calibration before = Example();
  const auto after = FromJson(ToJson(before));
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->weights_sha256, before.weights_sha256);
  EXPECT_EQ(after->configuration, before.configuration);
  EXPECT_EQ(after->drift.samples(), 4);
  EXPECT_EQ(after->drift.drops_at_least(), before.drift.drops_at_least());
  EXPECT_EQ(after->drift.drifts_at_least(), before.drift.drifts_at_least());
  EXPECT_EQ(after->fragile_margin, 0.125);
  EXPECT_EQ(after->rate.value, 0.75);
  EXPECT_EQ(after->rate.low, 0.5);
  EXPECT_EQ(after->rate.high, 1.5);
  EXPECT_EQ(after->prompts, 3);
  EXPECT_EQ(after->answers, 9);
}

TEST(Calibration, WhatIsWrongIsNamed) {
  EXPECT_EQ(ErrorOf("{"), "is not JSON");
  EXPECT_EQ(ErrorOf(""), "is not JSON");
  EXPECT_EQ(ErrorOf("[1]"), "is not a JSON object");
  EXPECT_EQ(ErrorOf("{}"), "format: is missing");
  EXPECT_EQ(ErrorWith("verbatim-fragility", "other"), "format: is not 'verbatim-fragility'");
  EXPECT_EQ(ErrorWith("\"version\": 1", "\"version\": 2"),
            "version: 2 is not the version this program reads, 1");
  EXPECT_EQ(ErrorWith("\"prompts\": 3", "\"prompts\": \"3\""), "prompts: is not an integer");
  EXPECT_EQ(ErrorWith("\"prompts\": 3", "\"prompts\": 0"), "prompts: is not positive");
  EXPECT_EQ(ErrorWith("\"prompts\": 3", "\"prompts\": 3, \"prompts\": 4"),
            "prompts: is given twice");
  EXPECT_EQ(ErrorWith("\"prompts\": 3", "\"prompts\": 18446744073709551615"),
            "prompts: is too large");
  EXPECT_EQ(ErrorWith("\"answers\": 9", "\"answers\": 2"), "answers: is less than prompts");
  EXPECT_EQ(ErrorWith("\"answers\": 9", "\"answers\": 9, \"colour\": 1"),
            "colour: is not a field of this format");
  EXPECT_EQ(ErrorWith("\"value\": 0.75", "\"value\": 1e7"),
            "rate.value: 1e+07 is not in [0, 1e+06]");
  EXPECT_EQ(ErrorWith("\"low\": 0.5", "\"low\": 0.9"), "rate.low: 0.9 is not in [0, rate.value]");
  EXPECT_EQ(ErrorWith("\"low\": 0.5,", ""), "rate.low: is missing");
  EXPECT_EQ(ErrorWith("\"high\": 1.5", "\"high\": 0.1"),
            "rate.high: 0.1 is not in [rate.value, 1e+06]");
  EXPECT_EQ(ErrorWith("0.125", "-1"), "fragile_margin: is not positive");
  EXPECT_EQ(ErrorWith("0.125", "null"), "fragile_margin: is not a number");
  EXPECT_EQ(ErrorWith(std::string(64, 'a'), "aa"), "weights_sha256: is not 64 hexadecimal digits");
  EXPECT_EQ(ErrorWith("\"samples\": 4", "\"samples\": 1"),
            "drift.drops_at_least[0]: 2 is not in [0, 1]");
  EXPECT_THAT(ErrorWith("\"drops_at_least\": [", "\"drops_at_least\": [7,"),
              HasSubstr("drift.drops_at_least: has 62 entries, not 61"));
}

TEST(Calibration, FitsOnlyWhatItWasMadeFor) {
  const Calibration c = Example();
  EXPECT_TRUE(CheckFits(c, c.weights_sha256, c.configuration).ok());
  const absl::Status weights = CheckFits(c, std::string(64, 'b'), c.configuration);
  EXPECT_EQ(weights.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(weights.message()), HasSubstr("weights_sha256: made for aaaa"));
  const absl::Status other = CheckFits(
      c, c.weights_sha256, ConfigurationName("cpu scalar, 1 thread", "float32", "float32"));
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.message()), HasSubstr("activations float32"));
}

TEST(Calibration, FilesAreNamedInErrors) {
  const std::string path = ::testing::TempDir() + "/calibration_test.json";
  EXPECT_EQ(LoadCalibration(path + ".none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadCalibration(::testing::TempDir()).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(path) << ToJson(Example());
  EXPECT_TRUE(LoadCalibration(path).ok());
  std::ofstream(path) << "{}";
  EXPECT_EQ(std::string(LoadCalibration(path).status().message()), path + ": format: is missing");
  std::ofstream(path) << std::string(2 << 20, ' ');
  EXPECT_THAT(std::string(LoadCalibration(path).status().message()), HasSubstr("more than"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace verbatim::fragility

// Tests of which calibration a server takes, and of the report made with it.
#include "server/fragility_calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "server/fragility_scores.h"

namespace verbatim::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kConfiguration[] = "cpu scalar";
const std::string& Weights() {
  static const std::string* const weights = new std::string(64, 'a');
  return *weights;
}

// Half of the drops reach 1; a margin of 2 or less is fragile.
fragility::Calibration Example() {
  fragility::Calibration c;
  c.weights_sha256 = Weights();
  c.configuration = kConfiguration;
  c.drift.Add(1);
  c.drift.Add(0);
  c.fragile_margin = 2;
  c.rate = {.value = 1, .low = 0.5, .high = 2};
  c.prompts = 1;
  c.answers = 1;
  return c;
}

class FindCalibrationTest : public ::testing::Test {
 protected:
  FindCalibrationTest() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~FindCalibrationTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

  const std::string folder_ = ::testing::TempDir() + "/fragility_calibration_test";
  const std::string model_ = folder_ + "/tiny.gguf";
  const std::string beside_ = folder_ + "/tiny.gguf.fragility.json";
  const std::string elsewhere_ = folder_ + "/elsewhere.json";
};

TEST_F(FindCalibrationTest, NothingThereIsNothingSaid) {
  const auto found = FindFragilityCalibration("", model_, Weights(), kConfiguration);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_FALSE(found->calibration.has_value());
  EXPECT_EQ(found->path, "");
  EXPECT_EQ(found->ignored, "");
}

TEST_F(FindCalibrationTest, TheFileBesideTheModelIsTaken) {
  Write(beside_, fragility::ToJson(Example()));
  const auto found = FindFragilityCalibration("", model_, Weights(), kConfiguration);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->calibration.has_value());
  EXPECT_EQ(found->path, beside_);
}

TEST_F(FindCalibrationTest, TheFileBesideTheModelIsIgnoredWhenItDoesNotFit) {
  Write(beside_, fragility::ToJson(Example()));
  const auto other = FindFragilityCalibration("", model_, std::string(64, 'b'), kConfiguration);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(other->calibration.has_value());
  EXPECT_EQ(other->path, "");
  EXPECT_THAT(other->ignored, HasSubstr(beside_ + ": weights_sha256: made for aaaa"));
  Write(beside_, "{");
  const auto malformed = FindFragilityCalibration("", model_, Weights(), kConfiguration);
  ASSERT_TRUE(malformed.ok()) << malformed.status();
  EXPECT_FALSE(malformed->calibration.has_value());
  EXPECT_THAT(malformed->ignored, HasSubstr("is not JSON"));
}

TEST_F(FindCalibrationTest, AnExplicitFileMustFit) {
  Write(elsewhere_, fragility::ToJson(Example()));
  EXPECT_TRUE(FindFragilityCalibration(elsewhere_, model_, Weights(), kConfiguration).ok());

  const absl::Status weights =
      FindFragilityCalibration(elsewhere_, model_, std::string(64, 'b'), kConfiguration).status();
  EXPECT_EQ(weights.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(weights.message()),
              StartsWith("--fragility-calibration: " + elsewhere_ + ": weights_sha256: made for"));
  const absl::Status configuration =
      FindFragilityCalibration(elsewhere_, model_, Weights(), "cpu avx2").status();
  EXPECT_EQ(configuration.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(configuration.message()), HasSubstr("this is 'cpu avx2'"));

  Write(elsewhere_, "{}");
  const absl::Status malformed =
      FindFragilityCalibration(elsewhere_, model_, Weights(), kConfiguration).status();
  EXPECT_EQ(malformed.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(malformed.message()), HasSubstr("format: is missing"));
  const absl::Status missing =
      FindFragilityCalibration(elsewhere_ + ".none", model_, Weights(), kConfiguration).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("cannot be read"));
}

TEST(DefaultCalibrationPath, StandsBesideFilesAndFolders) {
  EXPECT_EQ(DefaultCalibrationPath("m/a.gguf"), "m/a.gguf.fragility.json");
  EXPECT_EQ(DefaultCalibrationPath("m/a/"), "m/a.fragility.json");
}

engine::GenerationRequest Greedy() {
  engine::GenerationRequest request;
  request.policy = kernels::Policy::kThroughput;
  request.sampling.temperature = 0;
  return request;
}

TEST(FragilityScores, KeepsSamplesApart) {
  const fragility::Calibration calibration = Example();
  FragilityScores scores(calibration, Greedy());
  scores.Add(0, {1, 100});
  scores.Add(1, {1});
  scores.Add(0, {1.5F});
  const v1::Fragility first = scores.Take(0), second = scores.Take(1);
  EXPECT_EQ(first.fragile_tokens(), 2);
  EXPECT_EQ(second.fragile_tokens(), 1);
  EXPECT_NEAR(second.probability(), 0.5, 1e-12);
  EXPECT_NEAR(second.probability_low(), 1 - std::sqrt(0.5), 1e-12);
  EXPECT_NEAR(second.probability_high(), 0.75, 1e-12);
  EXPECT_EQ(second.calibration(), "cpu scalar; 1 prompts, 1 answers");
  EXPECT_EQ(second.note(), "");
}

TEST(FragilityScores, AStrongPolicyHasProbabilityZero) {
  const fragility::Calibration calibration = Example();
  for (kernels::Policy policy : {kernels::Policy::kPinned, kernels::Policy::kPortable}) {
    engine::GenerationRequest request = Greedy();
    request.policy = policy;
    request.sampling.temperature = 1;  // promised all the same
    FragilityScores scores(calibration, request);
    scores.Add(0, {0});
    const v1::Fragility report = scores.Take(0);
    EXPECT_EQ(report.fragile_tokens(), 1);
    EXPECT_TRUE(report.has_probability());
    EXPECT_EQ(report.probability(), 0);
    EXPECT_EQ(report.probability_high(), 0);
    EXPECT_THAT(report.note(), HasSubstr("promises equal bits"));
  }
}

TEST(FragilityScores, NoProbabilityWhereRawLogitsDoNotDecide) {
  const fragility::Calibration calibration = Example();
  std::vector<engine::GenerationRequest> requests(6, Greedy());
  requests[0].sampling.temperature = 0.7F;
  requests[1].sampling.presence_penalty = 1;
  requests[2].sampling.frequency_penalty = 1;
  requests[3].sampling.repetition_penalty = 1.1F;
  requests[4].sampling.logit_bias = {{1, 2.0F}};
  requests[5].sampling.min_tokens = 1;
  for (size_t i = 0; i < requests.size(); ++i) {
    FragilityScores scores(calibration, requests[i]);
    scores.Add(0, {0});
    const v1::Fragility report = scores.Take(0);
    EXPECT_EQ(report.fragile_tokens(), 1) << i;
    EXPECT_FALSE(report.has_probability()) << i;
    EXPECT_FALSE(report.has_probability_high()) << i;
    EXPECT_THAT(report.note(), StartsWith("no probability")) << i;
  }
}

}  // namespace
}  // namespace verbatim::server

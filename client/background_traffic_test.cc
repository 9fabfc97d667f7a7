// Background traffic against a service in this process.
#include "client/background_traffic.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "client/client_test_support.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(BackgroundRequest, VariesWithinItsShape) {
  std::mt19937_64 random(1);
  int64_t shortest = 1000, longest = 0;
  for (int i = 0; i < 500; ++i) {
    const v1::GenerateRequest request =
        BackgroundRequest({.max_tokens = 20, .determinism = v1::DETERMINISM_PORTABLE}, &random);
    EXPECT_EQ(request.determinism(), v1::DETERMINISM_PORTABLE);
    EXPECT_TRUE(request.sampling().has_seed());
    const auto words = std::count(request.text().begin(), request.text().end(), ' ');
    EXPECT_GE(words, 5);
    EXPECT_LE(words, 120);
    shortest = std::min(shortest, request.sampling().max_tokens());
    longest = std::max(longest, request.sampling().max_tokens());
  }
  EXPECT_EQ(shortest, 8);
  EXPECT_EQ(longest, 20);
  const BackgroundShape own{.prompts = {"own"}, .max_tokens = 3};
  EXPECT_EQ(BackgroundRequest(own, &random).text(), "own");
  EXPECT_EQ(BackgroundRequest(own, &random).sampling().max_tokens(), 3);
}

TEST(ReadPrompts, TakesOnePromptALine) {
  const std::string path = testing::TempDir() + "/prompts_" + std::to_string(getpid());
  std::ofstream(path) << "one\r\n\ntwo words\n";
  const auto prompts = ReadPrompts(path);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_THAT(*prompts, ElementsAre("one", "two words"));
  std::ofstream(path) << "\n";
  EXPECT_THAT(std::string(ReadPrompts(path).status().message()), HasSubstr(path));
  std::remove(path.c_str());
  EXPECT_EQ(ReadPrompts(path).status().code(), absl::StatusCode::kNotFound);
}

class BackgroundTrafficTest : public testing::Test {
 protected:
  FakeServer server_;
  std::unique_ptr<Client> client_ = server_.Connect();
};

TEST_F(BackgroundTrafficTest, SendsUntilItIsStopped) {
  BackgroundTraffic traffic(
      client_.get(),
      {.shape = {.prompts = {"x"}, .max_tokens = 2}, .rate_per_second = 1000, .seed = 1});
  traffic.WaitForArrivals(30, absl::Seconds(60));
  const BackgroundFigures figures = traffic.Stop();
  EXPECT_GE(figures.arrivals, 30);
  EXPECT_EQ(figures.failed, 0) << figures.first_error;
  EXPECT_LE(figures.completed + figures.left_out, figures.arrivals);
  EXPECT_GT(figures.completed, 0);
  EXPECT_GE(figures.output_tokens, 2 * figures.completed);
  EXPECT_GT(figures.seconds, 0);
  EXPECT_EQ(traffic.Stop().arrivals, figures.arrivals);
}

TEST_F(BackgroundTrafficTest, LeavesOutWhatFindsNoRoomAndCancelsAtTheEnd) {
  BackgroundTraffic traffic(
      client_.get(),
      {.shape = {.prompts = {"hang"}}, .rate_per_second = 1000, .max_concurrency = 3});
  traffic.WaitForArrivals(20, absl::Seconds(60));
  const BackgroundFigures figures = traffic.Stop();
  EXPECT_GE(figures.arrivals, 20);
  EXPECT_EQ(figures.left_out, figures.arrivals - 3);
  EXPECT_EQ(figures.completed, 0);
  EXPECT_EQ(figures.failed, 0) << figures.first_error;
  EXPECT_LE(server_.service().most_in_flight(), 3);
}

TEST_F(BackgroundTrafficTest, CountsWhatFails) {
  BackgroundTraffic traffic(client_.get(),
                            {.shape = {.prompts = {"fail"}}, .rate_per_second = 1000});
  traffic.WaitForArrivals(60, absl::Seconds(60));
  const BackgroundFigures figures = traffic.Stop();
  EXPECT_GT(figures.failed, 0);
  EXPECT_EQ(figures.completed, 0);
  EXPECT_EQ(figures.first_error, "INVALID_ARGUMENT: text: no");
}

TEST_F(BackgroundTrafficTest, SendsNothingAtRateZero) {
  BackgroundTraffic traffic(client_.get(), {});
  traffic.WaitForArrivals(1, absl::InfiniteDuration());
  EXPECT_EQ(traffic.Stop().arrivals, 0);
  EXPECT_TRUE(server_.service().requests().empty());
}

}  // namespace
}  // namespace verbatim::client

// The experiment behind `verbatim lab moe-demo` on a tiny mixture of experts, with real servers.
#include "lab/moe_experiment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "lab/machine.h"
#include "lab/moe_page.h"
#include "lab/moe_report.h"

namespace verbatim::lab {
namespace {

using ::testing::HasSubstr;

MoeExperimentOptions Tiny(const std::string& model) {
  MoeExperimentOptions options;
  options.server.model = model;
  options.server.server_binary = VERBATIM_BINARY;
  options.server.kv_cache_bytes = "16MiB";
  options.demo.prompts = {"a tiny model", "b", "c d e f g h"};
  options.demo.chat = false;
  options.demo.repeats = 3;
  options.demo.blocks = 1;
  options.demo.max_tokens = 8;
  options.demo.concurrency = 4;
  options.search.attackers = 4;
  options.search.attacker_tokens = 12;
  options.search.candidates = 8;
  return options;
}

TEST(MoeExperiment, LimitsLetNeighboursInAndDeterministicModeKeepsThemOut) {
  const ExpertLimit limit{.capacity_factor = 1};
  const auto result = RunMoeExperiment(
      Tiny("tests/fixtures/reference/gguf_mixtral_q4_1.gguf"),
      {ThroughputArm("throughput", {}), ThroughputArm("throughput_capacity", limit),
       DeterministicArm("deterministic", limit)},
      [](const std::string&) {});
  ASSERT_TRUE(result.ok()) << result.status();

  const MoeArmResult& limited = *result->Find("throughput_capacity");
  EXPECT_GT(limited.neighbours.slots.lost, 0);
  EXPECT_GT(limited.neighbours.answers_with_other_bits(), 0);
  EXPECT_GT(limited.attack->attacked_slots.lost, 0);
  EXPECT_EQ(limited.attack->attacked.size(), 3U);

  const MoeArmResult& unlimited = *result->Find("throughput");
  EXPECT_GT(unlimited.neighbours.slots.slots, 0);
  EXPECT_EQ(unlimited.neighbours.slots.lost, 0);

  const MoeArmResult& strict = *result->Find("deterministic");
  EXPECT_EQ(strict.neighbours.among.requests, 9);
  EXPECT_EQ(strict.neighbours.answers_with_other_bits(), 0);
  EXPECT_EQ(Changed(strict.attack->attacked), 0);
  EXPECT_GT(strict.attack->attacked_slots.lost, 0);  // the attackers' own
  EXPECT_FALSE(result->PromiseBroken());

  const nlohmann::json data = MoeJson(*result, DescribeMachine());
  EXPECT_EQ(data["attack"]["deterministic"]["success_rate"], 0);
  EXPECT_TRUE(data["derived"].is_null());
  EXPECT_THAT(MoePage(data), HasSubstr("</html>"));
}

TEST(MoeExperiment, ADenseModelIsRefused) {
  const auto result =
      RunMoeExperiment(Tiny("tests/fixtures/reference/gguf_llama_q4_1.gguf"),
                       {ThroughputArm("throughput", {})}, [](const std::string&) {});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("dense"));
}

}  // namespace
}  // namespace verbatim::lab

// The engine on a mixture of experts: strong requests keep their bits whoever crowds the experts.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/engine_test_support.h"

namespace verbatim::engine {
namespace {

using kernels::CapacityOverflow;
using kernels::Policy;

std::unique_ptr<Engine> Start(const EngineConfig& config, int threads = 2) {
  const TestModel& model = TinyMoeModel();
  return *Engine::Create(config, TinyBackend(threads), *model.checkpoint, *model.tokenizer);
}

CollectingSink::Sample Alone(const GenerationRequest& request,
                             const EngineConfig& config = TinyConfig()) {
  std::unique_ptr<Engine> engine = Start(config, 1);
  std::shared_ptr<CollectingSink> sink = Send(*engine, request);
  EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
  return sink->samples.at(0);
}

// The prompts and policies of strong requests; sampled ones among them.
std::vector<GenerationRequest> StrongRequests() {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(i, 5 + 55 * i), 16));
    requests.back().policy = i % 2 == 0 ? Policy::kPortable : Policy::kPinned;
  }
  requests[1].sampling.temperature = 0.8f;
  return requests;
}

// Every token of it is the same, so that all of its rows crowd the same experts.
GenerationRequest Crowd(int token, int length) {
  GenerationRequest request = GreedyRequest(std::vector<int32_t>(length, token), 24);
  request.policy = Policy::kThroughput;
  return request;
}

struct Circumstance {
  const char* name;
  EngineConfig config = TinyConfig();
  int threads = 2;
};

std::vector<Circumstance> Circumstances() {
  std::vector<Circumstance> all(6);
  all[0].name = "as usual";
  all[1].name = "chunks of 17, three threads";
  all[1].config.scheduler.max_num_batched_tokens = 17;
  all[1].threads = 3;
  all[2].name = "capacity, drop";
  all[2].config.moe_capacity_factor = 0.5;
  all[3].name = "capacity, next";
  all[3].config.moe_capacity_factor = 0.75;
  all[3].config.moe_overflow = CapacityOverflow::kNext;
  all[4].name = "few pages and capacity";
  all[4].config.moe_capacity_factor = 0.01;
  all[4].config.scheduler.num_pages = 32;
  all[5].name = "bf16 throughput neighbours";
  all[5].config.throughput_activations = kernels::ActivationType::kBF16;
  return all;
}

TEST(EngineMoeTest, StrongRequestsHaveTheSameBitsWhoeverCrowdsTheExperts) {
  const std::vector<GenerationRequest> requests = StrongRequests();
  std::vector<CollectingSink::Sample> expected;
  for (const GenerationRequest& request : requests) expected.push_back(Alone(request));
  for (const Circumstance& circumstance : Circumstances()) {
    std::unique_ptr<Engine> engine = Start(circumstance.config, circumstance.threads);
    // Twice, so that the second round meets pages that others wrote.
    for (int round = 0; round < 2; ++round) {
      std::vector<std::shared_ptr<CollectingSink>> sinks, neighbours;
      for (size_t i = 0; i < requests.size(); ++i) {
        neighbours.push_back(Send(*engine, Crowd(20 + 7 * static_cast<int>(i), 40)));
        // The same prompt as a strong request's, under limits: its pages are not for that one.
        GenerationRequest same = requests[i];
        same.policy = Policy::kThroughput;
        neighbours.push_back(Send(*engine, same));
        sinks.push_back(Send(*engine, requests[i]));
      }
      for (size_t i = 0; i < sinks.size(); ++i) {
        ASSERT_TRUE(sinks[i]->Wait().ok()) << circumstance.name << ": " << sinks[i]->final_status;
        EXPECT_EQ(sinks[i]->samples[0].tokens, expected[i].tokens)
            << circumstance.name << ", request " << i;
        EXPECT_EQ(sinks[i]->samples[0].finished.logits_sha256, expected[i].finished.logits_sha256)
            << circumstance.name << ", request " << i << ", round " << round;
      }
      for (const auto& sink : neighbours) EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
    }
  }
}

// A throughput request rides along with a strong one, on strong kernels, and loses nearly all of
// its experts; a strong request with the same prompt must not read the pages that it wrote.
TEST(EngineMoeTest, StrongRequestsDoNotReadPagesWrittenUnderLimits) {
  EngineConfig config = TinyConfig();
  config.moe_capacity_factor = 0.01;
  GenerationRequest request = GreedyRequest(RandomPrompt(7, 60), 8);
  request.policy = Policy::kPinned;
  const CollectingSink::Sample expected = Alone(request);
  std::unique_ptr<Engine> engine = Start(config);
  GenerationRequest companion = GreedyRequest(RandomPrompt(8, 10), 200);
  companion.policy = Policy::kPinned;
  GenerationRequest limited = request;
  limited.policy = Policy::kThroughput;
  // Submitted between two steps of the companion, so that they share the next ones.
  std::shared_ptr<CollectingSink> written;
  auto beside = std::make_shared<CollectingSink>();
  beside->on_delta = [&](int deltas) {
    if (deltas == 2) written = Send(*engine, limited);
  };
  const absl::StatusOr<RequestId> id = engine->Submit(companion, beside);
  ASSERT_TRUE(id.ok()) << id.status();
  beside->WaitForDeltas(3);
  ASSERT_NE(written, nullptr);
  ASSERT_TRUE(written->Wait().ok()) << written->final_status;
  EXPECT_GT(engine->stats().steps.ride_along_rows, 0) << "the circumstance did not happen";
  EXPECT_NE(written->samples[0].finished.logits_sha256, expected.finished.logits_sha256);
  const std::shared_ptr<CollectingSink> sink = Send(*engine, request);
  ASSERT_TRUE(sink->Wait().ok()) << sink->final_status;
  EXPECT_EQ(sink->samples[0].finished.logits_sha256, expected.finished.logits_sha256);
  engine->Cancel(*id);
  beside->Wait();
}

// The other side: without a strong policy, neighbours change the answer, so the limits are at work.
TEST(EngineMoeTest, ThroughputRequestsFeelTheirNeighboursUnderCapacity) {
  EngineConfig config = TinyConfig();
  config.moe_capacity_factor = 0.5;
  GenerationRequest request = GreedyRequest(RandomPrompt(3, 12), 16);
  request.policy = Policy::kThroughput;
  request.read_prefix_cache = false;
  std::unique_ptr<Engine> engine = Start(config);
  int different = 0;
  const CollectingSink::Sample alone = Alone(request, config);
  for (int round = 0; round < 4; ++round) {
    std::vector<std::shared_ptr<CollectingSink>> crowd;
    for (int i = 0; i < 6; ++i) crowd.push_back(Send(*engine, Crowd(20 + 5 * round, 30)));
    std::shared_ptr<CollectingSink> sink = Send(*engine, request);
    ASSERT_TRUE(sink->Wait().ok()) << sink->final_status;
    different += sink->samples[0].finished.logits_sha256 != alone.finished.logits_sha256;
    for (const auto& other : crowd) EXPECT_TRUE(other->Wait().ok());
  }
  EXPECT_GT(different, 0);
}

TEST(EngineMoeTest, BadCapacityIsRefusedByName) {
  const TestModel& model = TinyMoeModel();
  for (const double factor : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EngineConfig config = TinyConfig();
    config.moe_capacity_factor = factor;
    const absl::Status status =
        Engine::Create(config, TinyBackend(), *model.checkpoint, *model.tokenizer).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find("moe_capacity_factor"), std::string::npos);
  }
}

}  // namespace
}  // namespace verbatim::engine

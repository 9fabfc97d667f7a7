// The engine over the CUDA backend on the emulated device: the CPU's bits, neighbours, memory for
// keys and values, input that a kernel refuses, and a device that fails.
#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine_test_support.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/device/open_backend.h"
#include "kernels/forwarding_backend.h"
#include "simt/emulator.h"
#include "simt/faults.h"

namespace verbatim::engine {
namespace {

namespace faults = kernels::cuda::simt_faults;
using ::testing::HasSubstr;

class SimtEngineTest : public testing::Test {
 protected:
  void TearDown() override {
    faults::Heal();
    faults::SetDeviceCount(1);
    faults::SetComputeCapability(0);
    faults::SetFreeMemory(int64_t{64} << 20);
  }
  static absl::StatusOr<std::unique_ptr<Engine>> Start(const EngineConfig& config,
                                                       const TestModel& model = TinyModel()) {
    auto backend = kernels::OpenBackend({.device = "cuda"});
    if (!backend.ok()) return backend.status();
    return Engine::Create(config, *std::move(backend), *model.checkpoint, *model.tokenizer);
  }
  static GenerationRequest Request(uint32_t seed, kernels::Policy policy, int length = 21,
                                   int max_tokens = 4) {
    GenerationRequest request = GreedyRequest(RandomPrompt(seed, length), max_tokens);
    request.policy = policy;
    return request;
  }
  static std::string Text(const absl::Status& status) { return std::string(status.message()); }
};

TEST_F(SimtEngineTest, WithoutWgmmaWhenAsked) {
  faults::SetComputeCapability(9);
  const auto described = [](bool wgmma) {
    auto backend = kernels::OpenBackend({.device = "cuda", .wgmma = wgmma});
    return backend.ok() ? (*backend)->Describe() : std::string(backend.status().message());
  };
  EXPECT_THAT(described(false), testing::HasSubstr(kernels::kWithoutWgmma));
  EXPECT_THAT(described(true), testing::HasSubstr("pinned products of many tokens by wgmma"));
}

TEST_F(SimtEngineTest, PortableAnswersHaveTheCpusBits) {
  for (const TestModel* model : {&TinyModel(), &TinyMoeModel()}) {
    auto cpu = Engine::Create(SmallConfig(), TinyBackend(1), *model->checkpoint, *model->tokenizer);
    auto gpu = Start(SmallConfig(), *model);
    ASSERT_TRUE(cpu.ok() && gpu.ok()) << gpu.status();
    const int64_t launches = simt::LaunchCount();
    EXPECT_EQ((*gpu)->SupportOf(kernels::Policy::kPortable).numerics_id,
              (*cpu)->SupportOf(kernels::Policy::kPortable).numerics_id);
    GenerationRequest request = Request(1, kernels::Policy::kPortable);
    request.sampling.temperature = 1;
    request.sampling.top_p = 0.9f;
    auto expected = Send(**cpu, request);
    auto got = Send(**gpu, request);
    ASSERT_TRUE(expected->Wait().ok());
    ASSERT_TRUE(got->Wait().ok()) << got->final_status;
    EXPECT_EQ(got->samples[0].tokens, expected->samples[0].tokens);
    EXPECT_EQ(got->samples[0].finished.logits_sha256, expected->samples[0].finished.logits_sha256);
    EXPECT_GT(simt::LaunchCount(), launches);
  }
}

TEST_F(SimtEngineTest, NeighboursOfEveryPolicyMoveNoStrongBit) {
  auto gpu = Start(SmallConfig());
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  for (const auto policy : {kernels::Policy::kPinned, kernels::Policy::kPortable}) {
    GenerationRequest request = Request(1, policy);
    request.read_prefix_cache = false;
    auto alone = Send(**gpu, request);
    ASSERT_TRUE(alone->Wait().ok()) << alone->final_status;
    auto first = Send(**gpu, Request(2, kernels::Policy::kThroughput, 30, 6));
    auto among = Send(**gpu, request);
    auto last = Send(**gpu, Request(3, kernels::Policy::kPinned, 9, 6));
    ASSERT_TRUE(among->Wait().ok() && first->Wait().ok() && last->Wait().ok());
    EXPECT_EQ(among->samples[0].finished.logits_sha256, alone->samples[0].finished.logits_sha256);
  }
}

TEST_F(SimtEngineTest, GraphsChangeNoAnswer) {
  for (const TestModel* model : {&TinyModel(), &TinyMoeModel()}) {
    std::vector<std::vector<std::string>> hashes(2);
    for (const bool eager : {false, true}) {
      auto gpu = Engine::Create(SmallConfig(),
                                *kernels::OpenBackend({.device = "cuda", .enforce_eager = eager}),
                                *model->checkpoint, *model->tokenizer);
      ASSERT_TRUE(gpu.ok()) << gpu.status();
      std::vector<std::shared_ptr<CollectingSink>> sinks;
      for (uint32_t i = 0; i < 6; ++i) {  // some wait; the steps' sizes change
        const auto policy = i % 2 == 0 ? kernels::Policy::kPinned : kernels::Policy::kPortable;
        sinks.push_back(Send(**gpu, Request(i, policy, 5 + static_cast<int>(i), 3 + i % 3)));
      }
      for (const auto& sink : sinks) {
        ASSERT_TRUE(sink->Wait().ok()) << sink->final_status;
        hashes[eager].push_back(sink->samples[0].finished.logits_sha256);
      }
    }
    EXPECT_EQ(hashes[0], hashes[1]);
  }
}

TEST_F(SimtEngineTest, AStepThatCannotBeRecordedIsAnErrorAtTheStart) {
  faults::FailRecordingsAfter(1);
  const absl::Status status = Start(SmallConfig()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Text(status), HasSubstr("first decode step in pinned: recording a decode step of 1 "
                                      "rows as a CUDA graph: cuda: the stream cannot be recorded"));
}

TEST_F(SimtEngineTest, KeysAndValuesGetTheirShareOfFreeMemory) {
  EngineConfig config = SmallConfig();
  config.scheduler.num_pages = 0;
  config.kv_cache_share = 0.5;
  faults::SetFreeMemory(int64_t{2} << 20);
  auto gpu = Start(config);
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  const int64_t bytes = (*gpu)->stats().kv_cache_bytes;
  EXPECT_LE(bytes, int64_t{1} << 20);
  EXPECT_GT(bytes, int64_t{1} << 19);
  faults::SetFreeMemory(4096);
  const absl::Status little = Start(config).status();
  EXPECT_EQ(little.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Text(little), HasSubstr("0.5 of the 4096 bytes"));
}

TEST_F(SimtEngineTest, WhatCannotStartSaysWhy) {
  faults::SetDeviceCount(0);
  EXPECT_THAT(Text(Start(SmallConfig()).status()), HasSubstr("--device cuda: cuda: no device 0"));
  faults::SetDeviceCount(1);
  // Whichever allocation fails, of the backend, the weights or the pages.
  const int64_t before = faults::Allocations();
  ASSERT_TRUE(Start(SmallConfig()).ok());
  const int64_t needed = faults::Allocations() - before;
  ASSERT_GT(needed, 20);
  for (int64_t count = 0; count < needed; count += 5) {
    faults::FailAllocationsAfter(count);
    const absl::Status status = Start(SmallConfig()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << count << " " << status;
    EXPECT_THAT(Text(status), HasSubstr("cannot allocate")) << count;
    faults::Heal();
  }
}

TEST_F(SimtEngineTest, ADeviceThatFailsEndsEveryRequestAndRefusesNewOnes) {
  EngineConfig config = SmallConfig();
  std::atomic<int> failures{0};
  config.on_failure = [&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    ++failures;
  };
  auto gpu = Start(config);
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  ASSERT_TRUE(Send(**gpu, Request(1, kernels::Policy::kPortable))->Wait().ok());
  EXPECT_TRUE((*gpu)->failure().ok());
  faults::FailDeviceAfter(150, absl::InternalError("cuda: an illegal address"));
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint32_t i = 0; i < 6; ++i) {  // more than a step holds: some are waiting
    sinks.push_back(Send(**gpu, Request(i, kernels::Policy::kPortable, 21, 60)));
  }
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Text(sink->final_status),
                HasSubstr("the server's device has failed: cuda: an illegal address"));
    EXPECT_EQ(sink->done_calls, 1);
  }
  const auto refused = Send(**gpu, Request(9, kernels::Policy::kThroughput));
  EXPECT_EQ(refused->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text((*gpu)->failure()), HasSubstr("illegal address"));
  (*gpu)->Drain(absl::InfiniteFuture());  // ends: nothing is left
  gpu->reset();                           // after its thread, which calls back last
  EXPECT_EQ(failures, 1);
}

TEST_F(SimtEngineTest, ADeviceThatFailsWhileNothingRunsIsNoticed) {
  EngineConfig config = SmallConfig();
  config.idle_check = absl::Milliseconds(1);
  std::promise<absl::Status> noticed;
  config.on_failure = [&](const absl::Status& status) { noticed.set_value(status); };
  auto gpu = Start(config);
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  ASSERT_TRUE(Send(**gpu, Request(1, kernels::Policy::kPortable))->Wait().ok());
  faults::FailDevice(absl::InternalError("cuda: the device fell off the bus"));
  const absl::Status failure = noticed.get_future().get();
  EXPECT_EQ(failure.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(failure), HasSubstr("fell off the bus"));
  EXPECT_EQ((*gpu)->failure(), failure);
}

// Sends one token that the embedding does not have; what a kernel finds in its input it reports
// through the fault word, long after the call.
class WrongTokenBackend final : public kernels::ForwardingBackend {
 public:
  static constexpr int32_t kMark = 9;

  using kernels::ForwardingBackend::ForwardingBackend;
  absl::Status Embedding(const kernels::EmbeddingParams& params) override {
    std::vector<int32_t> tokens(params.tokens, params.tokens + params.num_tokens);
    for (int32_t& token : tokens) {
      if (token == kMark) token = 1 << 20;
    }
    kernels::EmbeddingParams wrong = params;
    wrong.tokens = tokens.data();
    return kernels::ForwardingBackend::Embedding(wrong);
  }
};

TEST_F(SimtEngineTest, WhatAKernelFindsInItsInputEndsThatStepAlone) {
  // A replay would have the arguments that were right for the step before.
  auto backend = kernels::OpenBackend({.device = "cuda", .enforce_eager = true});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EngineConfig config = SmallConfig();
  config.on_failure = [](const absl::Status& status) { ADD_FAILURE() << status; };
  auto gpu = Engine::Create(config, std::make_unique<WrongTokenBackend>(*std::move(backend)),
                            *TinyModel().checkpoint, *TinyModel().tokenizer);
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  GenerationRequest good = Request(1, kernels::Policy::kPortable);
  good.sampling.logit_bias = {{WrongTokenBackend::kMark, -100.0f}};
  for (int32_t& token : good.prompt) token += token == WrongTokenBackend::kMark;
  GenerationRequest bad = good;
  bad.prompt[5] = WrongTokenBackend::kMark;
  auto before = Send(**gpu, good);
  ASSERT_TRUE(before->Wait().ok()) << before->final_status;
  auto wrong = Send(**gpu, bad);
  EXPECT_FALSE(wrong->Wait().ok());
  EXPECT_THAT(Text(wrong->final_status), HasSubstr("Embedding: a token is out of range"));
  EXPECT_TRUE((*gpu)->failure().ok());
  auto after = Send(**gpu, good);
  ASSERT_TRUE(after->Wait().ok()) << after->final_status;
  EXPECT_EQ(after->samples[0].finished.logits_sha256, before->samples[0].finished.logits_sha256);
}

}  // namespace
}  // namespace verbatim::engine

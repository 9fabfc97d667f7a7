// Engines of two ranks on emulated devices, each rank a thread: one rank's bits from replayed
// steps, the start that tries them, and the end of a rank while others replay.
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine_test_support.h"
#include "engine/model_setup.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/device/open_backend.h"
#include "kernels/forwarding_backend.h"
#include "parallel/device_ranks.h"
#include "parallel/thread_communicator.h"
#include "simt/faults.h"

namespace verbatim::engine {
namespace {

using kernels::Policy;
using kernels::cuda::CudaBackend;
using ::testing::HasSubstr;
namespace faults = kernels::cuda::simt_faults;

GenerationRequest Request(uint32_t seed, Policy policy, int max_tokens) {
  GenerationRequest request = GreedyRequest(RandomPrompt(seed, 9), max_tokens);
  request.policy = policy;
  return request;
}

std::string Text(const absl::Status& status) { return std::string(status.message()); }

// A device that does something in front of a decode step.
class Interrupted final : public kernels::ForwardingBackend {
 public:
  Interrupted(std::unique_ptr<kernels::Backend> inner, std::function<absl::Status()> interrupt)
      : ForwardingBackend(std::move(inner)), interrupt_(std::move(interrupt)) {}
  absl::Status RunDecode(const kernels::DecodeStep& step,
                         absl::FunctionRef<absl::Status()> operations) override {
    if (absl::Status status = interrupt_(); !status.ok()) return status;
    return ForwardingBackend::RunDecode(step, operations);
  }

 private:
  const std::function<absl::Status()> interrupt_;
};

// Rank 1 is a thread; rank 0 an engine.
class SimtEngineRanksTest : public testing::Test {
 protected:
  void SetUp() override { faults::SetDeviceCount(2); }
  void TearDown() override {
    engine_.reset();
    device_.reset();
    if (follower_.valid()) follower_.wait();
    faults::Heal();
    faults::SetDeviceCount(1);
  }

  void Follow(
      bool eager = false,
      const std::function<absl::Status()>& interrupt = [] { return absl::OkStatus(); }) {
    follower_ = std::async(std::launch::async, [this, eager, interrupt] {
      Interrupted backend(*kernels::OpenBackend({.device = "cuda:1", .enforce_eager = eager}),
                          interrupt);
      auto device = parallel::OnDevice(*hosts_[1], backend);
      if (!device.ok()) return device.status();
      EngineConfig config = config_;
      config.communicator = device->get();
      absl::Status status = RunFollower(config, backend, *SharableModel().checkpoint);
      device->reset();
      return status;
    });
  }
  absl::Status Lead() {
    auto backend = *kernels::OpenBackend({.device = "cuda:0"});
    backend_ = dynamic_cast<CudaBackend*>(backend.get());
    auto device = parallel::OnDevice(*hosts_[0], *backend);
    if (!device.ok()) return device.status();
    device_ = *std::move(device);
    EngineConfig config = config_;
    config.communicator = device_.get();
    auto engine = Engine::Create(config, std::move(backend), *SharableModel().checkpoint,
                                 *SharableModel().tokenizer);
    if (!engine.ok()) return engine.status();
    engine_ = *std::move(engine);
    return absl::OkStatus();
  }

  EngineConfig config_ = SmallConfig();
  std::vector<std::unique_ptr<parallel::Communicator>> hosts_ =
      parallel::MakeThreadCommunicators(2);
  std::unique_ptr<parallel::Communicator> device_;
  std::unique_ptr<Engine> engine_;
  CudaBackend* backend_ = nullptr;  // the engine's
  std::future<absl::Status> follower_;
};

TEST_F(SimtEngineRanksTest, ReplayedStepsAnswerWithTheBitsOfOneRank) {
  Follow();
  ASSERT_TRUE(Lead().ok());
  EXPECT_EQ(backend_->recorded_steps(), 3);  // one in every policy, by the start
  EXPECT_EQ(backend_->replayed_steps(), 3);
  auto one = Engine::Create(SmallConfig(), *kernels::OpenBackend({.device = "cuda"}),
                            *SharableModel().checkpoint, *SharableModel().tokenizer);
  ASSERT_TRUE(one.ok()) << one.status();
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    std::vector<std::shared_ptr<CollectingSink>> expected, got;
    for (uint32_t i = 0; i < 3; ++i) {
      expected.push_back(Send(**one, Request(i, policy, 6)));
      got.push_back(Send(*engine_, Request(i, policy, 6)));
    }
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_TRUE(expected[i]->Wait().ok());
      ASSERT_TRUE(got[i]->Wait().ok()) << got[i]->final_status;
      EXPECT_EQ(got[i]->samples[0].finished.logits_sha256,
                expected[i]->samples[0].finished.logits_sha256);
    }
  }
  EXPECT_GT(backend_->replayed_steps(), 8);
  engine_.reset();
  EXPECT_TRUE(follower_.get().ok());
}

TEST_F(SimtEngineRanksTest, AllRanksRecordOrNone) {
  Follow(/*eager=*/true);
  EXPECT_EQ(Text(Lead()),
            "rank 1 does not fit rank 0: 'decode steps are not recorded', not 'decode steps are "
            "recorded'");
}

TEST_F(SimtEngineRanksTest, WhatARankCannotRecordIsAnErrorAtTheStart) {
  faults::FailRecordingsAfter(1);  // of either rank
  Follow();
  EXPECT_THAT(Text(Lead()), HasSubstr("recording a decode step of 1 rows as a CUDA graph: cuda: "
                                      "the stream cannot be recorded"));
}

TEST_F(SimtEngineRanksTest, ARankThatEndsWhileOthersReplayEndsEveryRequest) {
  config_.scheduler.max_num_seqs = 1;  // every step's graph is there since the start
  std::atomic<int> steps{0};
  std::promise<absl::Status> told;
  const std::shared_future<absl::Status> noticed = told.get_future().share();
  // Rank 0 replays, and waits in the middle of it. Weights that were freed meanwhile, those of one
  // process, would make its graph invalid.
  Follow(/*eager=*/false, [&] {
    if (++steps < 12) return absl::OkStatus();
    hosts_[1]->Abort(absl::DataLossError("a bit has turned over"));
    return noticed.get();
  });
  config_.on_failure = [&](const absl::Status& status) { told.set_value(status); };
  ASSERT_TRUE(Lead().ok());
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint32_t i = 0; i < 3; ++i) {  // more than a step holds
    sinks.push_back(Send(*engine_, Request(i, Policy::kPortable, 60)));
  }
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Text(sink->final_status), HasSubstr("rank 1"));
    EXPECT_THAT(Text(sink->final_status), HasSubstr("a bit has turned over"));
  }
  EXPECT_EQ(noticed.get().code(), absl::StatusCode::kUnavailable);
  // The step that was cut short was a replay.
  EXPECT_EQ(backend_->recorded_steps(), 3);
  EXPECT_EQ(backend_->replayed_steps(), 12 - 3);
  EXPECT_FALSE(follower_.get().ok());
}

}  // namespace
}  // namespace verbatim::engine

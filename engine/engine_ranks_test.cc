// The engine of rank 0 with ranks as threads: one rank's bits, and an end for every request when a
// rank or a device fails, however it shows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>
#include <utility>

#include "engine/engine_test_support.h"
#include "engine/model_setup.h"
#include "kernels/forwarding_backend.h"
#include "parallel/thread_communicator.h"

namespace verbatim::engine {
namespace {

using kernels::Policy;
using testing::HasSubstr;

// A follower on a thread, to its end.
std::future<absl::Status> Follow(parallel::Communicator& communicator) {
  EngineConfig config = TinyConfig();
  config.communicator = &communicator;
  return std::async(std::launch::async, [config] {
    const std::unique_ptr<kernels::Backend> backend = TinyBackend(1);
    return RunFollower(config, *backend, *SharableModel().checkpoint);
  });
}

absl::StatusOr<std::unique_ptr<Engine>> Lead(parallel::Communicator* communicator,
                                             std::unique_ptr<kernels::Backend> backend,
                                             EngineConfig config = TinyConfig()) {
  config.communicator = communicator;
  return Engine::Create(config, std::move(backend), *SharableModel().checkpoint,
                        *SharableModel().tokenizer);
}

GenerationRequest Request(Policy policy, int max_tokens) {
  GenerationRequest request = GreedyRequest(RandomPrompt(1, 40), max_tokens);
  request.policy = policy;
  return request;
}

TEST(EngineRanksTest, TwoRanksAnswerWithTheBitsOfOneAndEndInOrder) {
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::future<absl::Status> follower = Follow(*ranks[1]);
  auto one = Lead(nullptr, TinyBackend(1)), two = Lead(ranks[0].get(), TinyBackend(1));
  ASSERT_TRUE(one.ok() && two.ok()) << two.status();
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    auto expected = Send(**one, Request(policy, 12)), got = Send(**two, Request(policy, 12));
    ASSERT_TRUE(expected->Wait().ok());
    ASSERT_TRUE(got->Wait().ok()) << got->final_status;
    EXPECT_EQ(got->samples[0].finished.logits_sha256, expected->samples[0].finished.logits_sha256);
    EXPECT_EQ((*two)->SupportOf(policy).numerics_id, (*one)->SupportOf(policy).numerics_id);
  }
  EXPECT_TRUE(Send(**two, Request(Policy::kThroughput, 12))->Wait().ok());
  two->reset();
  EXPECT_TRUE(follower.get().ok());
}

// A replay has one rank, and must see that the answer had more.
TEST(EngineRanksTest, TracesNameTheRanks) {
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::future<absl::Status> follower = Follow(*ranks[1]);
  EngineConfig config = TinyConfig();
  config.allow_traces = true;
  auto one = Lead(nullptr, TinyBackend(1), config);
  auto two = Lead(ranks[0].get(), TinyBackend(1), config);
  ASSERT_TRUE(one.ok() && two.ok()) << two.status();
  GenerationRequest request = Request(Policy::kThroughput, 4);
  request.trace = true;
  auto alone = Send(**one, request), shared = Send(**two, request);
  ASSERT_TRUE(alone->Wait().ok() && shared->Wait().ok()) << shared->final_status;
  EXPECT_EQ(shared->samples[0].finished.trace->identity.numerics,
            alone->samples[0].finished.trace->identity.numerics + "/ranks-2");
  two->reset();
  EXPECT_TRUE(follower.get().ok());
}

TEST(EngineRanksTest, ARankThatEndsWhileItLoadsEndsTheStart) {
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::thread gone([&] { ranks[1].reset(); });
  const auto engine = Lead(ranks[0].get(), TinyBackend(1));
  gone.join();
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("rank 1 has ended"));
}

TEST(EngineRanksTest, RankZeroThatEndsWhileItLoadsEndsTheOthers) {
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::future<absl::Status> follower = Follow(*ranks[1]);
  ranks[0].reset();
  const absl::Status status = follower.get();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 has ended"));
}

TEST(EngineRanksTest, ARankThatFailsWhileNothingRunsEndsTheEngine) {
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::future<absl::Status> follower = Follow(*ranks[1]);
  std::promise<absl::Status> told;
  EngineConfig config = TinyConfig();
  config.on_failure = [&](const absl::Status& status) { told.set_value(status); };
  auto engine = Lead(ranks[0].get(), TinyBackend(1), config);
  ASSERT_TRUE(engine.ok()) << engine.status();
  ranks[1]->Abort(absl::DataLossError("a bit has turned over"));
  EXPECT_THAT(std::string(told.get_future().get().message()), HasSubstr("a bit has turned over"));
  EXPECT_EQ(Send(**engine, Request(Policy::kPortable, 4))->Wait().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(follower.get().ok());
}

// Rank 0's end, which loses its peers in the middle of a step without a sign, as transfers between
// devices do that are cut short.
class CutShort final : public parallel::Communicator {
 public:
  CutShort(parallel::Communicator& inner, int exchanges) : inner_(inner), left_(exchanges) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  absl::Status Announce(const std::string& bytes) override { return inner_.Announce(bytes); }
  absl::StatusOr<std::string> NextAnnouncement() override { return inner_.NextAnnouncement(); }
  absl::Status Report(const std::string& bytes) override { return inner_.Report(bytes); }
  absl::StatusOr<std::vector<std::string>> TakeReports() override { return inner_.TakeReports(); }
  absl::Status Exchange(absl::Span<const parallel::Block> sends,
                        absl::Span<const parallel::Block> receives) override {
    if (--left_ == 0) inner_.Abort(absl::InternalError("cut short"));
    return left_ > 0 ? inner_.Exchange(sends, receives) : absl::OkStatus();
  }
  absl::Status AllReduceSum(float* data, int64_t count) override {
    return inner_.AllReduceSum(data, count);
  }
  void Close() override { inner_.Close(); }
  void Abort(const absl::Status& why) override { inner_.Abort(why); }
  absl::Status failure() const override { return inner_.failure(); }
  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    inner_.OnFailure(std::move(callback));
  }

 private:
  parallel::Communicator& inner_;
  int left_;
};

TEST(EngineRanksTest, NothingIsToldOfAStepInWhichARankFailed) {
  const auto& config = SharableModel().checkpoint->config();
  // Two joins a layer and the logits: the last exchange of the third step.
  const int a_step = static_cast<int>(2 * config.num_layers + 1);
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::future<absl::Status> follower = Follow(*ranks[1]);
  CutShort cut(*ranks[0], 3 * a_step);
  auto engine = Lead(&cut, TinyBackend(1));
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto sink = Send(**engine, Request(Policy::kPortable, 12));
  EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(sink->final_status.message()), HasSubstr("cut short"));
  EXPECT_EQ(sink->samples.at(0).tokens.size(), 2u);
  EXPECT_FALSE(follower.get().ok());
}

// A device that is lost when it samples, of which the other ranks notice nothing by themselves.
class LostBackend final : public kernels::ForwardingBackend {
 public:
  using kernels::ForwardingBackend::ForwardingBackend;

  absl::Status Sample(const kernels::SamplingParams&) override {
    lost_ = true;
    return Synchronize();
  }
  absl::Status Synchronize() override {
    return lost_ ? absl::InternalError("the device has fallen off") : absl::OkStatus();
  }

 private:
  std::atomic<bool> lost_{false};
};

TEST(EngineRanksTest, TheOtherRanksLearnOfRankZerosLostDevice) {
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::future<absl::Status> follower = Follow(*ranks[1]);
  auto engine = Lead(ranks[0].get(), std::make_unique<LostBackend>(TinyBackend(1)));
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto sink = Send(**engine, Request(Policy::kPortable, 4));
  EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(follower.get().message()), HasSubstr("fallen off"));
}

// The other way round: a device that is lost after its part of the logits was put on its stream.
class LostAfterLogits final : public kernels::ForwardingBackend {
 public:
  using kernels::ForwardingBackend::ForwardingBackend;

  absl::Status GatherRows(const kernels::GatherRowsParams& params) override {
    steps_ = true;
    return kernels::ForwardingBackend::GatherRows(params);
  }
  absl::Status Synchronize() override {
    return steps_ ? absl::InternalError("the device has fallen off") : absl::OkStatus();
  }

 private:
  std::atomic<bool> steps_{false};
};

TEST(EngineRanksTest, AFollowersLostDeviceIsToldToRankZero) {
  auto ranks = parallel::MakeThreadCommunicators(2);
  std::future<absl::Status> follower = std::async(std::launch::async, [&] {
    EngineConfig config = TinyConfig();
    config.communicator = ranks[1].get();
    LostAfterLogits backend(TinyBackend(1));
    return RunFollower(config, backend, *SharableModel().checkpoint);
  });
  auto engine = Lead(ranks[0].get(), TinyBackend(1));
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto sink = Send(**engine, Request(Policy::kPortable, 300));
  EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(sink->final_status.message()), HasSubstr("fallen off"));
  EXPECT_FALSE(follower.get().ok());
}

}  // namespace
}  // namespace verbatim::engine

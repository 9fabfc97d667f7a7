// Tests that a request whose numbers go wrong, or a backend that fails, harms nobody else.
#include <gtest/gtest.h>

#include <limits>
#include <utility>

#include "engine/engine_test_support.h"
#include "kernels/forwarding_backend.h"

namespace verbatim::engine {
namespace {

constexpr int32_t kPoisonToken = 9;  // its embedding is NaN
constexpr int32_t kFailToken = 8;    // a step that embeds it fails

// Forwards every call to a real CPU backend, except that two tokens misbehave.
class FaultyBackend final : public kernels::ForwardingBackend {
 public:
  using kernels::ForwardingBackend::ForwardingBackend;

  absl::StatusOr<std::string> NumericsTag(kernels::Policy policy) const override {
    if (policy == kernels::Policy::kPinned) {
      return absl::FailedPreconditionError("a kernel without a pinned form");
    }
    return kernels::ForwardingBackend::NumericsTag(policy);
  }
  absl::Status Embedding(const kernels::EmbeddingParams& params) override {
    absl::Status status = kernels::ForwardingBackend::Embedding(params);
    const int64_t cols = params.table->cols();
    for (int64_t t = 0; t < params.num_tokens; ++t) {
      if (params.tokens[t] == kFailToken) return absl::InternalError("the device has fallen off");
      if (params.tokens[t] != kPoisonToken) continue;
      std::fill_n(params.y + t * cols, cols, std::numeric_limits<float>::quiet_NaN());
    }
    return status;
  }
};

std::unique_ptr<Engine> StartFaultyEngine(const TestModel& model = TinyModel()) {
  return *Engine::Create(TinyConfig(), std::make_unique<FaultyBackend>(TinyBackend()),
                         *model.checkpoint, *model.tokenizer);
}

TEST(EngineFaultTest, ANanEndsThatRequestAloneAndItsPagesAreNotReused) {
  const GenerationRequest good = GreedyRequest(RandomPrompt(1, 40), 24);
  std::unique_ptr<Engine> clean = StartEngine(TinyConfig());
  std::shared_ptr<CollectingSink> expected = Send(*clean, good);
  ASSERT_TRUE(expected->Wait().ok());

  std::unique_ptr<Engine> engine = StartFaultyEngine();
  std::vector<int32_t> poisoned = RandomPrompt(2, 60);
  poisoned[50] = kPoisonToken;
  for (int round = 0; round < 3; ++round) {
    std::shared_ptr<CollectingSink> bad = Send(*engine, GreedyRequest(poisoned, 24));
    std::shared_ptr<CollectingSink> neighbour = Send(*engine, good);
    EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
    EXPECT_NE(std::string(bad->final_status.message()).find("position 59"), std::string::npos)
        << bad->final_status;
    ASSERT_TRUE(neighbour->Wait().ok()) << neighbour->final_status;
    EXPECT_EQ(neighbour->samples[0].finished.logits_sha256,
              expected->samples[0].finished.logits_sha256);
  }
  // The same prefix with a healthy token must not meet the poisoned pages.
  std::vector<int32_t> healed = poisoned;
  healed[50] = kPoisonToken + 1;
  EXPECT_TRUE(Send(*engine, GreedyRequest(healed, 4))->Wait().ok());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.scheduler.free_pages + stats.scheduler.cached_pages, stats.scheduler.total_pages);
}

// A token without a defined expert, in the same step as others that have theirs.
TEST(EngineFaultTest, ANanInAMixtureOfExpertsHarmsNoNeighbour) {
  const TestModel& model = TinyMoeModel();
  GenerationRequest good = GreedyRequest(RandomPrompt(1, 40), 24);
  good.sampling.logit_bias = {{kPoisonToken, -100.0f}, {kFailToken, -100.0f}};
  std::unique_ptr<Engine> clean =
      *Engine::Create(TinyConfig(), TinyBackend(), *model.checkpoint, *model.tokenizer);
  std::shared_ptr<CollectingSink> expected = Send(*clean, good);
  ASSERT_TRUE(expected->Wait().ok());
  std::unique_ptr<Engine> engine = StartFaultyEngine(model);
  std::vector<int32_t> poisoned = RandomPrompt(2, 60);
  poisoned[50] = kPoisonToken;
  for (int round = 0; round < 3; ++round) {
    std::shared_ptr<CollectingSink> bad = Send(*engine, GreedyRequest(poisoned, 24));
    std::shared_ptr<CollectingSink> neighbour = Send(*engine, good);
    EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
    ASSERT_TRUE(neighbour->Wait().ok()) << neighbour->final_status;
    EXPECT_EQ(neighbour->samples[0].finished.logits_sha256,
              expected->samples[0].finished.logits_sha256);
  }
}

TEST(EngineFaultTest, AFailedStepEndsItsRequestsAndTheEngineGoesOn) {
  std::unique_ptr<Engine> engine = StartFaultyEngine();
  std::vector<int32_t> failing = RandomPrompt(3, 20);
  failing[3] = kFailToken;
  std::shared_ptr<CollectingSink> bad = Send(*engine, GreedyRequest(failing, 8));
  EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_NE(std::string(bad->final_status.message()).find("fallen off"), std::string::npos);
  EXPECT_TRUE(Send(*engine, GreedyRequest(RandomPrompt(4, 20), 8))->Wait().ok());
}

TEST(EngineFaultTest, APolicyThatCannotBeHonouredIsRefusedWithTheReason) {
  std::unique_ptr<Engine> engine = StartFaultyEngine();
  GenerationRequest pinned = GreedyRequest(RandomPrompt(5, 10), 4);
  pinned.policy = kernels::Policy::kPinned;
  const absl::Status status = Send(*engine, pinned)->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(status.message()).find("a kernel without a pinned form"),
            std::string::npos);
  EXPECT_FALSE(engine->SupportOf(kernels::Policy::kPinned).honoured);
  EXPECT_TRUE(engine->SupportOf(kernels::Policy::kPortable).honoured);
}

}  // namespace
}  // namespace verbatim::engine

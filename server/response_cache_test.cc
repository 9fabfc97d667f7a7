// Tests of the response cache apart from gRPC: bounds, eviction, and what is kept.
#include "server/response_cache.h"

#include <gtest/gtest.h>

#include <utility>

#include "server/service_test_support.h"

namespace verbatim::server {
namespace {

ResponseKey Key(uint8_t number) { return {number}; }

std::shared_ptr<const CachedAnswer> AnswerOf(int64_t bytes) {
  auto answer = std::make_shared<CachedAnswer>();
  answer->bytes = bytes;
  return answer;
}

// Counts what it is passed.
class CountingSink final : public engine::ResponseSink {
 public:
  void OnPromptLogprobs(std::vector<engine::PositionLogprobs>) override { ++events; }
  void OnDelta(engine::DeltaEvent event) override {
    ++events;
    text += event.text;
  }
  void OnFinished(engine::FinishedEvent) override { ++events; }
  void OnDone(absl::Status status, engine::UsageEvent) override {
    ++events;
    done = std::move(status);
  }
  int events = 0;
  std::string text;
  absl::Status done = absl::UnknownError("not done");
};

TEST(ResponseCacheTest, OnlyWhatFollowsFromTheRequestIsCacheable) {
  engine::GenerationRequest request;
  request.policy = kernels::Policy::kPinned;
  request.sampling.seed = 1;
  EXPECT_TRUE(IsCacheable(request));
  engine::GenerationRequest changed = request;
  changed.sampling.seed.reset();
  EXPECT_FALSE(IsCacheable(changed));
  changed.sampling.temperature = 0;
  EXPECT_TRUE(IsCacheable(changed));
  changed = request;
  changed.policy = kernels::Policy::kThroughput;
  EXPECT_FALSE(IsCacheable(changed));
  changed = request;
  changed.read_prefix_cache = false;
  EXPECT_FALSE(IsCacheable(changed));
  changed = request;
  changed.trace = true;
  EXPECT_FALSE(IsCacheable(changed));
}

TEST(ResponseCacheTest, NeverHoldsMoreThanItsCapacityAndEvictsTheLeastRecentlyUsed) {
  ResponseCache cache(1000);
  for (uint8_t i = 0; i < 3; ++i) cache.Insert(Key(i), AnswerOf(300));
  EXPECT_NE(cache.Find(Key(0)), nullptr);  // 1 is now the oldest
  cache.Insert(Key(3), AnswerOf(300));
  EXPECT_EQ(cache.Find(Key(1)), nullptr);
  for (uint8_t i : {0, 2, 3}) EXPECT_NE(cache.Find(Key(i)), nullptr) << int{i};
  cache.Insert(Key(4), AnswerOf(500));
  EXPECT_EQ(cache.stats().size_bytes, 800);
  EXPECT_EQ(cache.stats().entries, 2);
  EXPECT_EQ(cache.stats().evictions, 3);
  EXPECT_EQ(cache.stats().hits, 4);
  EXPECT_EQ(cache.stats().misses, 1);
  for (int i = 0; i < 200; ++i) {
    cache.Insert(Key(static_cast<uint8_t>(i)), AnswerOf(1 + (i * 37) % 499));
    EXPECT_LE(cache.stats().size_bytes, 1000);
  }
}

TEST(ResponseCacheTest, AnAnswerThatIsTooLargeEvictsNothing) {
  ResponseCache cache(1000);
  cache.Insert(Key(1), AnswerOf(400));
  cache.Insert(Key(2), AnswerOf(501));
  EXPECT_EQ(cache.Find(Key(2)), nullptr);
  EXPECT_NE(cache.Find(Key(1)), nullptr);
}

TEST(ResponseCacheTest, AnEvictedAnswerLivesOnWhereItIsUsed) {
  ResponseCache cache(1000);
  cache.Insert(Key(1), AnswerOf(400));
  const std::shared_ptr<const CachedAnswer> held = cache.Find(Key(1));
  cache.Insert(Key(2), AnswerOf(400));
  cache.Insert(Key(3), AnswerOf(400));
  EXPECT_EQ(cache.Find(Key(1)), nullptr);
  EXPECT_EQ(held->bytes, 400);
}

TEST(RecordingSinkTest, KeepsWhatItPassesOnWithDeltasJoined) {
  ResponseCache cache(1 << 20);
  auto inner = std::make_shared<CountingSink>();
  RecordingSink sink(inner, &cache, Key(1));
  sink.OnPromptLogprobs(std::vector<engine::PositionLogprobs>(3));
  engine::DeltaEvent a = TextDelta(0, "a"), b = TextDelta(0, "b");
  a.top_margins = {1};
  b.top_margins = {2};
  sink.OnDelta(a);
  sink.OnDelta(TextDelta(1, "x"));
  sink.OnDelta(b);
  sink.OnFinished(Finished(0, 2));
  sink.OnDelta(TextDelta(1, "y"));
  sink.OnFinished(Finished(1, 2));
  EXPECT_EQ(cache.Find(Key(1)), nullptr) << "not before its end";
  sink.OnDone(absl::OkStatus(), {});
  EXPECT_EQ(inner->events, 8);
  EXPECT_TRUE(inner->done.ok());
  const std::shared_ptr<const CachedAnswer> answer = cache.Find(Key(1));
  ASSERT_NE(answer, nullptr);
  ASSERT_EQ(answer->events.size(), 5u);
  EXPECT_EQ(std::get<engine::DeltaEvent>(answer->events[1]).text, "ab");
  EXPECT_EQ(std::get<engine::DeltaEvent>(answer->events[1]).tokens.size(), 2u);
  EXPECT_EQ(std::get<engine::DeltaEvent>(answer->events[1]).top_margins,
            std::vector<float>({1, 2}));
  EXPECT_EQ(std::get<engine::DeltaEvent>(answer->events[2]).text, "xy");
  EXPECT_GT(answer->bytes, 500);
}

TEST(RecordingSinkTest, AnswersThatDidNotCompleteAreNotKept) {
  ResponseCache cache(1 << 20);
  for (const absl::Status& status :
       {absl::CancelledError("left"), absl::DeadlineExceededError("late"),
        absl::InternalError("not finite"), absl::UnavailableError("shutting down")}) {
    auto inner = std::make_shared<CountingSink>();
    RecordingSink sink(inner, &cache, Key(1));
    sink.OnDelta(TextDelta(0, "a"));
    sink.OnFinished(Finished(0, 1));
    sink.OnDone(status, {});
    EXPECT_EQ(inner->done, status);
    EXPECT_EQ(cache.Find(Key(1)), nullptr) << status;
  }
}

TEST(RecordingSinkTest, AnAnswerThatGrowsTooLargeIsPassedOnAndForgotten) {
  ResponseCache cache(10'000);
  auto inner = std::make_shared<CountingSink>();
  RecordingSink sink(inner, &cache, Key(1));
  const std::string piece(100, 'x');
  for (int i = 0; i < 100; ++i) sink.OnDelta(TextDelta(0, piece));
  sink.OnFinished(Finished(0, 100));
  sink.OnDone(absl::OkStatus(), {});
  EXPECT_EQ(inner->text.size(), 10'000u);
  EXPECT_TRUE(inner->done.ok());
  EXPECT_EQ(cache.stats().entries, 0);
}

}  // namespace
}  // namespace verbatim::server

// Tests of the engine on a small real model: life of a request, errors, limits, and equal bits
// whatever the load.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>

#include "absl/time/clock.h"
#include "engine/engine_test_support.h"

namespace verbatim::engine {
namespace {

using kernels::Policy;

// The answer alone on an idle engine: what every other circumstance must reproduce.
CollectingSink::Sample Alone(const GenerationRequest& request,
                             const EngineConfig& config = TinyConfig()) {
  std::unique_ptr<Engine> engine = StartEngine(config, 1);
  std::shared_ptr<CollectingSink> sink = Send(*engine, request);
  EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
  return sink->samples.at(0);
}

TEST(EngineTest, GeneratesAndAccounts) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  std::shared_ptr<CollectingSink> sink = Send(*engine, GreedyRequest(RandomPrompt(1, 40), 12));
  ASSERT_TRUE(sink->Wait().ok()) << sink->final_status;
  ASSERT_EQ(sink->samples.size(), 1u);
  EXPECT_EQ(sink->samples[0].tokens.size(), 12u);
  EXPECT_TRUE(sink->samples[0].is_finished);
  EXPECT_EQ(sink->samples[0].finished.reason, FinishReason::kLength);
  EXPECT_EQ(sink->samples[0].finished.logits_sha256.size(), 64u);
  EXPECT_EQ(sink->usage.prompt_tokens, 40);
  EXPECT_EQ(sink->usage.output_tokens, 12);
  EXPECT_EQ(sink->done_calls, 1);
  EXPECT_EQ(TinyModel().tokenizer->Decode(sink->samples[0].tokens, true), sink->samples[0].text);
}

TEST(EngineTest, TopMarginsComeWhenAskedFor) {
  GenerationRequest request = GreedyRequest(RandomPrompt(1, 40), 12);
  EXPECT_TRUE(Alone(request).top_margins.empty());
  request.return_top_margins = true;
  request.sampling.logprobs = 2;
  const CollectingSink::Sample sample = Alone(request);
  ASSERT_EQ(sample.top_margins.size(), 12u);
  for (size_t i = 0; i < sample.top_margins.size(); ++i) {
    // The gap of two log-probabilities is that of their logits, but for rounding.
    const auto& top = sample.logprobs[i].top;
    EXPECT_NEAR(sample.top_margins[i], top[0].logprob - top[1].logprob, 1e-4) << i;
  }
  EXPECT_EQ(*std::min_element(sample.top_margins.begin(), sample.top_margins.end()),
            sample.finished.min_top_margin);
}

struct Circumstance {
  std::string name;
  EngineConfig config = TinyConfig();
  int threads = 2;
};

std::vector<Circumstance> Circumstances() {
  std::vector<Circumstance> all(10);
  all[0].name = "as usual";
  all[1].name = "small chunks";
  all[1].config.scheduler.max_num_batched_tokens = 17;
  all[2].name = "no prefix cache";
  all[2].config.scheduler.enable_prefix_caching = false;
  all[3].name = "large pages, one thread";
  all[3].config.scheduler.page_tokens = 64;
  all[3].threads = 1;
  all[4].name = "dynamic";
  all[4].config.scheduler.policy = scheduler::BatchingPolicy::kDynamic;
  all[5].name = "fixed";
  all[5].config.scheduler.policy = scheduler::BatchingPolicy::kFixed;
  all[5].config.scheduler.flush_timeout = absl::Milliseconds(20);
  all[6].name = "three threads";
  all[6].threads = 3;
  all[7].name = "few pages: preemption";
  all[7].config.scheduler.num_pages = 24;
  all[8].name = "two sequences at a time";
  all[8].config.scheduler.max_num_seqs = 2;
  all[9].name = "bf16 throughput neighbours";
  all[9].config.throughput_activations = kernels::ActivationType::kBF16;
  return all;
}

// The heart of the project: strong requests have one set of bits, whatever else happens.
TEST(EngineTest, StrongRequestsHaveTheSameBitsUnderEveryCircumstance) {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(GreedyRequest(RandomPrompt(i, 5 + 75 * i), 16));
  requests[1].sampling.temperature = 0.8f;
  requests[2].sampling.temperature = 1.0f;
  requests[2].sampling.top_p = 0.9f;
  requests[3].policy = Policy::kPinned;
  std::vector<CollectingSink::Sample> expected;
  for (const GenerationRequest& request : requests) expected.push_back(Alone(request));

  for (const Circumstance& circumstance : Circumstances()) {
    std::unique_ptr<Engine> engine = StartEngine(circumstance.config, circumstance.threads);
    int64_t preemptions = 0;
    // Twice, so that the second round meets a warm prefix cache.
    for (int round = 0; round < 2; ++round) {
      std::vector<std::shared_ptr<CollectingSink>> sinks, neighbours;
      for (size_t i = 0; i < 8; ++i) {
        GenerationRequest neighbour = GreedyRequest(RandomPrompt(100 + i, 20 + 13 * i), 40 + i);
        if (i % 2 == 0) neighbour.policy = Policy::kThroughput;
        neighbours.push_back(Send(*engine, neighbour));
        sinks.push_back(Send(*engine, requests[i % requests.size()]));
      }
      for (size_t i = 0; i < sinks.size(); ++i) {
        ASSERT_TRUE(sinks[i]->Wait().ok()) << circumstance.name << ": " << sinks[i]->final_status;
        const CollectingSink::Sample& want = expected[i % requests.size()];
        EXPECT_EQ(sinks[i]->samples[0].tokens, want.tokens)
            << circumstance.name << ", request " << i;
        EXPECT_EQ(sinks[i]->samples[0].finished.logits_sha256, want.finished.logits_sha256)
            << circumstance.name << ", request " << i << ", round " << round;
        preemptions += sinks[i]->usage.preemptions;
      }
      for (const auto& sink : neighbours) EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
    }
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.scheduler.running_sequences, 0);
    EXPECT_EQ(stats.scheduler.free_pages + stats.scheduler.cached_pages,
              stats.scheduler.total_pages);
    EXPECT_GT(stats.steps.strong_steps, 0);
    if (circumstance.config.scheduler.num_pages == 24) {
      EXPECT_GT(preemptions, 0) << "the circumstance did not happen";
    }
    if (circumstance.config.scheduler.enable_prefix_caching) {
      EXPECT_GT(stats.scheduler.prefix_hit_tokens, 0) << circumstance.name;
    }
  }
}

TEST(EngineTest, SampledTextDependsOnTheSeedAlone) {
  GenerationRequest request = GreedyRequest(RandomPrompt(3, 20), 24);
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 42;
  const CollectingSink::Sample first = Alone(request);
  EXPECT_EQ(Alone(request).tokens, first.tokens);
  request.sampling.seed = 43;
  EXPECT_NE(Alone(request).tokens, first.tokens);
}

TEST(EngineTest, SamplesOfOneRequestDifferAndTheFirstEqualsASingleCall) {
  GenerationRequest request = GreedyRequest(RandomPrompt(4, 50), 16);
  request.sampling.temperature = 1.0f;
  const CollectingSink::Sample single = Alone(request);
  request.sampling.n = 5;
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  std::shared_ptr<CollectingSink> sink = Send(*engine, request);
  ASSERT_TRUE(sink->Wait().ok()) << sink->final_status;
  ASSERT_EQ(sink->samples.size(), 5u);
  std::set<std::vector<int32_t>> different;
  for (const CollectingSink::Sample& sample : sink->samples) {
    EXPECT_TRUE(sample.is_finished);
    different.insert(sample.tokens);
  }
  EXPECT_EQ(different.size(), 5u);
  EXPECT_EQ(sink->samples[0].tokens, single.tokens);
  EXPECT_EQ(sink->samples[0].finished.logits_sha256, single.finished.logits_sha256);
  EXPECT_EQ(sink->usage.output_tokens, 5 * 16);
}

TEST(EngineTest, StopsAtTokensAndStringsAndRespectsMinTokens) {
  GenerationRequest request = GreedyRequest(RandomPrompt(5, 30), 20);
  const CollectingSink::Sample full = Alone(request);
  const int32_t stop_token = full.tokens[6];
  const size_t first =
      std::find(full.tokens.begin(), full.tokens.end(), stop_token) - full.tokens.begin();

  GenerationRequest by_token = request;
  by_token.sampling.stop_token_ids = {stop_token};
  const CollectingSink::Sample stopped = Alone(by_token);
  EXPECT_EQ(stopped.tokens.size(), first + 1);
  EXPECT_EQ(stopped.finished.reason, FinishReason::kStop);
  EXPECT_EQ(stopped.finished.stop_reason, std::to_string(stop_token));

  by_token.sampling.min_tokens = 20;
  const CollectingSink::Sample kept = Alone(by_token);
  EXPECT_EQ(kept.tokens.size(), 20u);
  // Banned for the first 19 tokens; the twentieth is drawn with 19 tokens out, still below the
  // minimum.
  EXPECT_EQ(std::count(kept.tokens.begin(), kept.tokens.end(), stop_token), 0);

  GenerationRequest by_text = request;
  ASSERT_GT(full.text.size(), 8u);
  const std::string stop = full.text.substr(full.text.size() / 2, 3);
  by_text.sampling.stop = {stop};
  const CollectingSink::Sample cut = Alone(by_text);
  EXPECT_EQ(cut.text, full.text.substr(0, full.text.find(stop)));
  EXPECT_EQ(cut.finished.stop_reason, stop);
}

TEST(EngineTest, LogprobsOfOutputAndPromptAgree) {
  GenerationRequest request = GreedyRequest(RandomPrompt(6, 70), 8);
  request.sampling.logprobs = 3;
  const CollectingSink::Sample answer = Alone(request);
  ASSERT_EQ(answer.logprobs.size(), 8u);

  // The same tokens as a prompt: teacher forcing has the bits of decoding.
  GenerationRequest forced = request;
  forced.prompt.insert(forced.prompt.end(), answer.tokens.begin(), answer.tokens.end());
  forced.sampling.prompt_logprobs = 3;
  forced.sampling.max_tokens = 1;
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  std::shared_ptr<CollectingSink> sink = Send(*engine, forced);
  ASSERT_TRUE(sink->Wait().ok()) << sink->final_status;
  ASSERT_EQ(sink->prompt_logprobs.size(), 78u);
  EXPECT_EQ(sink->prompt_logprobs[0].chosen.token, -1);
  for (size_t i = 0; i < 8; ++i) {
    const PositionLogprobs& prompt_side = sink->prompt_logprobs[70 + i];
    EXPECT_EQ(prompt_side.chosen.token, answer.tokens[i]);
    EXPECT_EQ(prompt_side.chosen.logprob, answer.logprobs[i].chosen.logprob) << i;
    ASSERT_EQ(prompt_side.top.size(), 3u);
    for (int t = 0; t < 3; ++t) {
      EXPECT_EQ(prompt_side.top[t].token, answer.logprobs[i].top[t].token);
      EXPECT_EQ(prompt_side.top[t].logprob, answer.logprobs[i].top[t].logprob);
    }
  }
}

TEST(EngineTest, CancelFreesPagesAndOthersGoOn) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  const GenerationRequest survivor = GreedyRequest(RandomPrompt(7, 33), 40);
  RequestId id = 0;
  std::shared_ptr<CollectingSink> doomed =
      Send(*engine, GreedyRequest(RandomPrompt(8, 100), 280), &id);
  std::shared_ptr<CollectingSink> kept = Send(*engine, survivor);
  doomed->WaitForDeltas(3);
  engine->Cancel(id);
  EXPECT_EQ(doomed->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(doomed->samples[0].tokens.size(), 280u);
  ASSERT_TRUE(kept->Wait().ok());
  EXPECT_EQ(kept->samples[0].finished.logits_sha256, Alone(survivor).finished.logits_sha256);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.scheduler.free_pages + stats.scheduler.cached_pages, stats.scheduler.total_pages);
  engine->Cancel(id);       // ended: ignored
  engine->Cancel(1 << 20);  // unknown: ignored
}

TEST(EngineTest, DeadlinesAreKept) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  GenerationRequest late = GreedyRequest(RandomPrompt(9, 10), 300);
  late.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(Send(*engine, late)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(EngineTest, TheQueueIsBoundedInRequestsAndTokens) {
  EngineConfig config = TinyConfig();
  config.scheduler.max_num_seqs = 1;
  config.scheduler.max_queued_requests = 2;
  config.scheduler.max_queued_tokens = 100;
  std::unique_ptr<Engine> engine = StartEngine(config);
  RequestId first = 0;
  std::shared_ptr<CollectingSink> running =
      Send(*engine, GreedyRequest(RandomPrompt(1, 8), 370), &first);
  running->WaitForDeltas(1);
  std::shared_ptr<CollectingSink> queued = Send(*engine, GreedyRequest(RandomPrompt(2, 60), 4));
  EXPECT_EQ(Send(*engine, GreedyRequest(RandomPrompt(3, 60), 4))->Wait().code(),
            absl::StatusCode::kResourceExhausted);
  std::shared_ptr<CollectingSink> small = Send(*engine, GreedyRequest(RandomPrompt(4, 4), 4));
  EXPECT_EQ(Send(*engine, GreedyRequest(RandomPrompt(5, 4), 4))->Wait().code(),
            absl::StatusCode::kResourceExhausted);
  engine->Cancel(first);
  EXPECT_TRUE(queued->Wait().ok());
  EXPECT_TRUE(small->Wait().ok());
  EXPECT_TRUE(Send(*engine, GreedyRequest(RandomPrompt(6, 60), 4))->Wait().ok());
}

TEST(EngineTest, DrainFinishesWhatRunsAndRefusesWhatComes) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  std::shared_ptr<CollectingSink> running = Send(*engine, GreedyRequest(RandomPrompt(1, 8), 30));
  engine->Drain(absl::InfiniteFuture());
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_EQ(running->samples[0].tokens.size(), 30u);
  EXPECT_EQ(Send(*engine, GreedyRequest(RandomPrompt(1, 8), 3))->Wait().code(),
            absl::StatusCode::kUnavailable);
}

TEST(EngineTest, DrainEndsTheRestAtItsDeadline) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  std::shared_ptr<CollectingSink> running = Send(*engine, GreedyRequest(RandomPrompt(1, 8), 370));
  running->WaitForDeltas(1);
  engine->Drain(absl::Now());
  EXPECT_EQ(running->Wait().code(), absl::StatusCode::kUnavailable);
}

TEST(EngineTest, DestructionEndsEveryRequestOnce) {
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  {
    std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
    for (int i = 0; i < 20; ++i)
      sinks.push_back(Send(*engine, GreedyRequest(RandomPrompt(i, 30), 300)));
  }
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(sink->done_calls, 1);
  }
}

TEST(EngineTest, CallersMayComeFromManyThreads) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  const CollectingSink::Sample expected = Alone(GreedyRequest(RandomPrompt(1, 20), 6));
  std::atomic<int> equal{0}, cancelled{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 6; ++i) {
        RequestId id = 0;
        std::shared_ptr<CollectingSink> sink =
            Send(*engine, GreedyRequest(RandomPrompt(1, 20), 6), &id);
        if ((t + i) % 3 == 0) engine->Cancel(id);
        engine->stats();
        const absl::Status& status = sink->Wait();
        if (status.ok()) {
          equal += sink->samples[0].finished.logits_sha256 == expected.finished.logits_sha256;
        } else {
          cancelled += status.code() == absl::StatusCode::kCancelled;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal + cancelled, 24);
  EXPECT_GE(equal, 16);
}

TEST(EngineTest, BadConfigurationsAreRefusedByName) {
  const TestModel& model = TinyModel();
  const auto error = [&](const EngineConfig& config) {
    return std::string(Engine::Create(config, TinyBackend(), *model.checkpoint, *model.tokenizer)
                           .status()
                           .message());
  };
  EngineConfig config = TinyConfig();
  config.scheduler.max_model_len = 1 << 30;
  EXPECT_NE(error(config).find("max_model_len"), std::string::npos) << error(config);
  config = TinyConfig();
  config.scheduler.num_pages = 0;
  config.kv_cache_bytes = 10;
  EXPECT_NE(error(config).find("kv_cache_bytes"), std::string::npos) << error(config);
  config = TinyConfig();
  config.scheduler.max_num_seqs = 0;
  EXPECT_NE(error(config).find("max_num_seqs"), std::string::npos) << error(config);
}

}  // namespace
}  // namespace verbatim::engine

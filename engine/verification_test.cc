// Tests that an answer verifies on any engine that honours its policy, and that every change to it
// is found at the first place where it shows.
#include "engine/verification.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/engine_test_support.h"

namespace verbatim::engine {
namespace {

using kernels::Policy;

class VerifyingSink final : public ResponseSink {
 public:
  void OnPromptLogprobs(std::vector<PositionLogprobs>) override { ADD_FAILURE(); }
  void OnDelta(DeltaEvent) override { ADD_FAILURE() << "a verification generates nothing"; }
  void OnFinished(FinishedEvent) override { ADD_FAILURE(); }
  void OnVerified(const VerificationEvent& event) override {
    std::lock_guard lock(mu_);
    verified = event;
  }
  void OnDone(absl::Status status, UsageEvent) override {
    std::lock_guard lock(mu_);
    done = std::move(status);
    changed_.notify_all();
  }
  const absl::Status& Wait() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return done.has_value(); });
    return *done;
  }

  std::optional<VerificationEvent> verified;  // read only after Wait()
  std::optional<absl::Status> done;

 private:
  std::mutex mu_;
  std::condition_variable changed_;
};

// Every sample of an answer as a request that claims it.
std::vector<GenerationRequest> Claims(Engine& engine, GenerationRequest request) {
  request.keep_record = true;
  std::shared_ptr<CollectingSink> sink = Send(engine, request);
  EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
  std::vector<GenerationRequest> claims;
  for (const CollectingSink::Sample& sample : sink->samples) {
    const AnswerRecord& record = *sample.finished.record;
    EXPECT_EQ(record.output, sample.tokens);
    auto claim = std::make_shared<AnswerClaim>();
    claim->sample_index = sample.finished.index;
    claim->output = record.output;
    claim->rows = record.rows;
    claim->reason = sample.finished.reason;
    claim->stop_reason = sample.finished.stop_reason;
    GenerationRequest verify = request;
    verify.keep_record = false;
    verify.sampling.n = 1;
    verify.sampling.logprobs = verify.sampling.prompt_logprobs = -1;
    verify.sampling.seed = record.seed;
    verify.sampling.max_tokens = record.max_output_tokens;
    verify.claim = std::move(claim);
    claims.push_back(std::move(verify));
  }
  return claims;
}

// "verified", or "FIELD[INDEX]", or the status that ended the request.
std::string Verify(Engine& engine, const GenerationRequest& claim, int64_t* rows = nullptr) {
  auto sink = std::make_shared<VerifyingSink>();
  if (absl::StatusOr<RequestId> id = engine.Submit(claim, sink); !id.ok()) {
    return id.status().ToString();
  }
  if (!sink->Wait().ok()) return sink->done->ToString();
  if (!sink->verified.has_value()) return "no verdict";
  if (rows != nullptr) *rows = sink->verified->rows_checked;
  if (!sink->verified->difference.has_value()) return "verified";
  const ClaimDifference& difference = *sink->verified->difference;
  EXPECT_NE(difference.expected, difference.actual);
  return absl::StrCat(difference.field, "[", difference.token_index, "]");
}

GenerationRequest Altered(const GenerationRequest& request,
                          const std::function<void(AnswerClaim&)>& change) {
  GenerationRequest altered = request;
  auto claim = std::make_shared<AnswerClaim>(*request.claim);
  change(*claim);
  altered.claim = std::move(claim);
  return altered;
}

GenerationRequest SampledRequest(uint32_t prompt_seed, int prompt_tokens, int max_tokens) {
  GenerationRequest request = GreedyRequest(RandomPrompt(prompt_seed, prompt_tokens), max_tokens);
  SamplingOptions& s = request.sampling;
  s.temperature = 0.9f;
  s.top_k = 40;
  s.top_p = 0.95f;
  s.min_p = 0.01f;
  s.presence_penalty = 0.4f;
  s.frequency_penalty = 0.3f;
  s.repetition_penalty = 1.2f;
  s.seed = 77;
  return request;
}

// Requests that reach every part of sampler and stop rules.
std::vector<std::pair<std::string, GenerationRequest>> Requests() {
  std::vector<std::pair<std::string, GenerationRequest>> all;
  all.emplace_back("greedy", GreedyRequest(RandomPrompt(1, 40), 40));
  all.emplace_back("one token", GreedyRequest(RandomPrompt(2, 1), 1));
  all.emplace_back("long prompt", GreedyRequest(RandomPrompt(3, 200), 100));
  all.emplace_back("sampled", SampledRequest(4, 30, 60));
  GenerationRequest request = SampledRequest(5, 33, 20);
  request.sampling.n = 4;
  request.sampling.logprobs = 3;
  all.emplace_back("several samples", request);
  request = SampledRequest(6, 20, 30);
  request.sampling.logit_bias = {{17, 6.0f}, {200, -100.0f}, {33, 5.5f}};
  all.emplace_back("logit bias", request);
  request = SampledRequest(7, 20, 60);
  request.sampling.seed.reset();
  request.sampling.max_tokens.reset();
  request.sampling.ignore_eos = false;
  request.sampling.logit_bias = {{TinyModel().tokenizer->eos_ids()[0], 4.0f}};
  request.sampling.top_k = 0;
  request.sampling.min_tokens = 9;
  all.emplace_back("end of text", request);
  request = GreedyRequest(RandomPrompt(8, 20), 60);
  request.sampling.stop_token_ids = {};
  for (int32_t token = 0; token < 290; token += 7) {
    request.sampling.stop_token_ids.push_back(token);
  }
  request.sampling.min_tokens = 4;
  all.emplace_back("stop token", request);
  return all;
}

GenerationRequest WithStopString(Engine& engine) {
  GenerationRequest request = GreedyRequest(RandomPrompt(9, 24), 60);
  std::shared_ptr<CollectingSink> sink = Send(engine, request);
  EXPECT_TRUE(sink->Wait().ok());
  const std::string& text = sink->samples.at(0).text;
  request.sampling.stop = {"never this", text.substr(text.size() / 2, 3)};
  return request;
}

TEST(VerificationTest, WhatOneEngineAnswersAnotherVerifies) {
  std::unique_ptr<Engine> first = StartEngine(TinyConfig(), 2);
  std::vector<std::pair<std::string, GenerationRequest>> requests = Requests();
  requests.emplace_back("stop string", WithStopString(*first));
  EngineConfig other = TinyConfig();
  other.scheduler.page_tokens = 64;
  other.scheduler.num_pages = 32;
  other.scheduler.max_num_batched_tokens = 23;
  other.scheduler.enable_prefix_caching = false;
  std::unique_ptr<Engine> second = StartEngine(other, 1, kernels::cpu::Isa::kScalar);
  for (const auto& [name, request] : requests) {
    for (Policy policy : {Policy::kPinned, Policy::kPortable}) {
      GenerationRequest asked = request;
      asked.policy = policy;
      for (const GenerationRequest& claim : Claims(*first, asked)) {
        int64_t rows = 0;
        EXPECT_EQ(Verify(*first, claim, &rows), "verified") << name;
        EXPECT_EQ(rows, static_cast<int64_t>(claim.claim->output.size()));
        if (first->SupportOf(policy).numerics_id == second->SupportOf(policy).numerics_id) {
          EXPECT_EQ(Verify(*second, claim), "verified") << name;
        }
      }
    }
  }
}

TEST(VerificationTest, ARequestWithStopStringsEndsWhereItDid) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  const GenerationRequest request = WithStopString(*engine);
  const GenerationRequest claim = Claims(*engine, request).at(0);
  ASSERT_EQ(claim.claim->reason, FinishReason::kStop);
  ASSERT_EQ(claim.claim->stop_reason, request.sampling.stop[1]);
  GenerationRequest without = claim;
  without.sampling.stop.clear();
  const std::string last = absl::StrCat("[", claim.claim->output.size() - 1, "]");
  EXPECT_EQ(Verify(*engine, without), "finish_reason" + last);
  EXPECT_EQ(Verify(*engine, Altered(claim, [](AnswerClaim& c) { c.stop_reason = "x"; })),
            "stop_reason" + last);
}

TEST(VerificationTest, EveryChangedTokenAndRowIsNamed) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  for (const GenerationRequest& request :
       {GreedyRequest(RandomPrompt(1, 40), 24), SampledRequest(2, 40, 24)}) {
    const GenerationRequest claim = Claims(*engine, request).at(0);
    ASSERT_EQ(Verify(*engine, claim), "verified");
    for (int i = 0; i < 24; ++i) {
      const std::string at = absl::StrCat("[", i, "]");
      EXPECT_EQ(Verify(*engine, Altered(claim, [i](AnswerClaim& c) { c.output[i] ^= 1; })),
                "output_token_ids" + at);
      EXPECT_EQ(Verify(*engine, Altered(claim, [i](AnswerClaim& c) { c.rows[i].a ^= 1; })),
                "row_fingerprints" + at);
      EXPECT_EQ(Verify(*engine, Altered(claim, [i](AnswerClaim& c) { c.rows[i].b ^= 1ull << 63; })),
                "row_fingerprints" + at);
    }
    for (size_t i = 0; i < claim.prompt.size(); ++i) {
      GenerationRequest altered = claim;
      altered.prompt[i] ^= 2;
      EXPECT_EQ(Verify(*engine, altered), "row_fingerprints[0]");
    }
  }
}

TEST(VerificationTest, AChangedEndIsFound) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  const GenerationRequest claim = Claims(*engine, GreedyRequest(RandomPrompt(1, 40), 12)).at(0);
  EXPECT_EQ(Verify(*engine, Altered(claim, [](AnswerClaim& c) { c.reason = FinishReason::kStop; })),
            "finish_reason[11]");
  EXPECT_EQ(Verify(*engine, Altered(claim,
                                    [](AnswerClaim& c) {
                                      c.output.pop_back();
                                      c.rows.pop_back();
                                    })),
            "finish_reason[10]");
  GenerationRequest shorter = claim;
  shorter.sampling.stop_token_ids = {claim.claim->output[5]};
  const std::string ends_early = Verify(*engine, shorter);
  EXPECT_TRUE(ends_early.starts_with("output_token_ids[")) << ends_early;
}

TEST(VerificationTest, ChangedParametersThatMatterAreFound) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  GenerationRequest request = SampledRequest(11, 30, 80);
  request.sampling.top_k = 0;
  request.sampling.top_p = 0.7f;
  const GenerationRequest claim = Claims(*engine, request).at(0);
  const std::vector<std::pair<std::string, std::function<void(GenerationRequest&)>>> changes = {
      {"seed", [](GenerationRequest& r) { r.sampling.seed = 78; }},
      {"temperature", [](GenerationRequest& r) { r.sampling.temperature = 1.4f; }},
      {"repetition", [](GenerationRequest& r) { r.sampling.repetition_penalty = 2.0f; }},
      {"frequency", [](GenerationRequest& r) { r.sampling.frequency_penalty = 2.0f; }},
      {"presence", [](GenerationRequest& r) { r.sampling.presence_penalty = 2.0f; }},
      {"top_p", [](GenerationRequest& r) { r.sampling.top_p = 0.05f; }},
      {"top_k", [](GenerationRequest& r) { r.sampling.top_k = 1; }},
      {"min_p", [](GenerationRequest& r) { r.sampling.min_p = 0.99f; }},
      {"bias",
       [&](GenerationRequest& r) {
         r.sampling.logit_bias = {{claim.claim->output[3], -100}};
       }},
      {"sample",
       [](GenerationRequest& r) { r = Altered(r, [](AnswerClaim& c) { c.sample_index = 1; }); }}};
  for (const auto& [name, change] : changes) {
    GenerationRequest altered = claim;
    change(altered);
    EXPECT_TRUE(Verify(*engine, altered).starts_with("output_token_ids[")) << name;
  }
}

TEST(VerificationTest, LoadAndPreemptionChangeNoVerdict) {
  EngineConfig config = TinyConfig();
  config.scheduler.num_pages = 40;  // far too few for all at once
  config.scheduler.max_num_batched_tokens = 48;
  std::unique_ptr<Engine> quiet = StartEngine(TinyConfig());
  std::unique_ptr<Engine> busy = StartEngine(config);
  const GenerationRequest claim = Claims(*quiet, SampledRequest(12, 100, 120)).at(0);
  const GenerationRequest wrong = Altered(claim, [](AnswerClaim& c) { c.rows[90].a += 1; });
  std::vector<std::shared_ptr<CollectingSink>> others;
  for (uint32_t i = 0; i < 12; ++i) {
    GenerationRequest other = SampledRequest(100 + i, 20 + 11 * i, 60);
    if (i % 2 == 0) other.policy = Policy::kThroughput;
    others.push_back(Send(*busy, other));
  }
  std::vector<std::shared_ptr<VerifyingSink>> right, changed;
  for (int i = 0; i < 6; ++i) {
    for (auto* list : {&right, &changed}) {
      list->push_back(std::make_shared<VerifyingSink>());
      ASSERT_TRUE(busy->Submit(list == &right ? claim : wrong, list->back()).ok());
    }
  }
  for (auto& sink : right) {
    ASSERT_TRUE(sink->Wait().ok()) << *sink->done;
    ASSERT_TRUE(sink->verified.has_value());
    EXPECT_FALSE(sink->verified->difference.has_value());
  }
  for (auto& sink : changed) {
    ASSERT_TRUE(sink->Wait().ok()) << *sink->done;
    ASSERT_TRUE(sink->verified->difference.has_value());
    EXPECT_EQ(sink->verified->difference->token_index, 90);
    EXPECT_EQ(sink->verified->rows_checked, 91);
  }
  for (auto& sink : others) EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
  EXPECT_GT(busy->stats().scheduler.preemptions, 0);
  EXPECT_EQ(busy->stats().scheduler.running_sequences, 0);
}

TEST(VerificationTest, ReadsNoCachedPageAndLeavesNoneToOthers) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  const GenerationRequest request = GreedyRequest(RandomPrompt(13, 100), 8);
  const GenerationRequest claim = Claims(*engine, request).at(0);
  const int64_t computed = engine->stats().steps.tokens;
  const int64_t queried = engine->stats().scheduler.prefix_queried_tokens;
  EXPECT_EQ(Verify(*engine, claim), "verified");
  EXPECT_EQ(engine->stats().steps.tokens - computed, 107);
  EXPECT_EQ(engine->stats().scheduler.prefix_queried_tokens, queried);

  std::unique_ptr<Engine> fresh = StartEngine(TinyConfig());
  EXPECT_EQ(Verify(*fresh, claim), "verified");
  std::shared_ptr<CollectingSink> sink = Send(*fresh, request);
  EXPECT_TRUE(sink->Wait().ok());
  EXPECT_EQ(sink->usage.cached_prompt_tokens, 0);
}

TEST(VerificationTest, IsBoundedLikeAnyRequest) {
  EngineConfig config = TinyConfig();
  config.scheduler.max_queued_tokens = 60;
  std::unique_ptr<Engine> maker = StartEngine(TinyConfig());
  std::unique_ptr<Engine> engine = StartEngine(config);
  const GenerationRequest claim = Claims(*maker, GreedyRequest(RandomPrompt(14, 40), 24)).at(0);
  EXPECT_TRUE(Verify(*engine, claim).starts_with("RESOURCE_EXHAUSTED")) << Verify(*engine, claim);
  config = TinyConfig();
  config.scheduler.max_model_len = 63;
  engine = StartEngine(config);
  EXPECT_TRUE(Verify(*engine, claim).starts_with("INVALID_ARGUMENT: output_token_ids: 24"));
  config.scheduler.max_model_len = 64;  // the answer fits, although max_tokens may not
  engine = StartEngine(config);
  EXPECT_EQ(Verify(*engine, claim), "verified");
}

TEST(VerificationTest, BadClaimsNameTheField) {
  std::unique_ptr<Engine> engine = StartEngine(TinyConfig());
  const GenerationRequest claim = Claims(*engine, GreedyRequest(RandomPrompt(15, 10), 4)).at(0);
  const std::vector<std::pair<std::string, std::function<void(GenerationRequest&, AnswerClaim&)>>>
      changes = {
          {"policy", [](auto& r, auto&) { r.policy = Policy::kThroughput; }},
          {"output_token_ids: is empty", [](auto&, auto& c) { c.output.clear(), c.rows.clear(); }},
          {"output_token_ids[2]: token id -1", [](auto&, auto& c) { c.output[2] = -1; }},
          {"output_token_ids[1]: token id 2000000", [](auto&, auto& c) { c.output[1] = 2000000; }},
          {"row_fingerprints: 3 for 4", [](auto&, auto& c) { c.rows.pop_back(); }},
          {"sample_index: -1", [](auto&, auto& c) { c.sample_index = -1; }},
          {"sampling.n: 2", [](auto& r, auto&) { r.sampling.n = 2; }},
          {"seed: is missing", [](auto& r, auto&) { r.sampling.seed.reset(); }},
          {"sampling.max_tokens: is missing",
           [](auto& r, auto&) { r.sampling.max_tokens.reset(); }},
          {"output_token_ids: 4 tokens are more",
           [](auto& r, auto&) { r.sampling.max_tokens = 3; }},
          {"sampling.min_tokens: 9", [](auto& r, auto&) { r.sampling.min_tokens = 9; }},
          {"sampling.top_p", [](auto& r, auto&) { r.sampling.top_p = 1.5f; }},
          {"prompt[0]", [](auto& r, auto&) { r.prompt[0] = -5; }},
      };
  for (const auto& [error, change] : changes) {
    GenerationRequest altered = claim;
    auto changed = std::make_shared<AnswerClaim>(*claim.claim);
    change(altered, *changed);
    altered.claim = std::move(changed);
    const std::string result = Verify(*engine, altered);
    EXPECT_TRUE(result.starts_with("INVALID_ARGUMENT: " + error)) << result;
  }
  EXPECT_EQ(Verify(*engine, claim), "verified");
}

}  // namespace
}  // namespace verbatim::engine

// Tests that a difference is traced to the operation that made it.
#include "replay/explanation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine_test_support.h"
#include "engine/version.h"
#include "replay/explain_report.h"
#include "replay/run_pair.h"

namespace verbatim::replay {
namespace {

using engine::CollectingSink;
using engine::EngineConfig;
using engine::GenerationRequest;
using engine::RandomPrompt;
using kernels::Policy;
using testing::HasSubstr;
using testing::Not;

constexpr char kWeights[] = "the weights";

GenerationRequest Throughput(std::vector<int32_t> prompt, int max_tokens) {
  GenerationRequest request = engine::GreedyRequest(std::move(prompt), max_tokens);
  request.policy = Policy::kThroughput;
  request.trace = true;
  request.read_prefix_cache = false;
  return request;
}

// The answer while `neighbours` others are being decoded, who began before it and end after it.
trace::Trace Record(const EngineConfig& base, int threads, int neighbours, int prompt_tokens,
                    Policy neighbour_policy = Policy::kThroughput) {
  EngineConfig config = base;
  config.allow_traces = true;
  std::unique_ptr<engine::Engine> engine = engine::StartEngine(config, threads);
  // All others are submitted on the engine's thread, between two of its steps, and the answer after
  // each of them has its first token.
  auto sink = std::make_shared<CollectingSink>();
  const auto submit_own = [&] {
    ASSERT_TRUE(engine->Submit(Throughput(RandomPrompt(7, prompt_tokens), 8), sink).ok());
  };
  std::vector<std::shared_ptr<CollectingSink>> others;
  for (int i = 0; i < neighbours; ++i) others.push_back(std::make_shared<CollectingSink>());
  const auto submit_other = [&](int i) {
    GenerationRequest request = Throughput(RandomPrompt(100 + i, 4), 300);
    request.policy = neighbour_policy;
    ASSERT_TRUE(engine->Submit(std::move(request), others[i]).ok());
  };
  if (neighbours == 0) {
    submit_own();
  } else {
    others[0]->on_delta = [&](int deltas) {
      for (int i = 1; deltas == 1 && i < neighbours; ++i) submit_other(i);
      if (deltas == 10) submit_own();
    };
    submit_other(0);
  }
  EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
  trace::Trace trace = *sink->samples.at(0).finished.trace;
  trace.identity.version = engine::kVersion;
  trace.identity.weights_sha256 = kWeights;
  return trace;
}

absl::StatusOr<Explanation> ExplainTiny(const trace::Trace& a, int threads_a, const trace::Trace& b,
                                        int threads_b) {
  const model::Checkpoint& checkpoint = *engine::TinyModel().checkpoint;
  auto first = Replayer::CreateOn(engine::TinyBackend(threads_a), checkpoint, kWeights, a);
  if (!first.ok()) return first.status();
  auto second = Replayer::CreateOn(engine::TinyBackend(threads_b), checkpoint, kWeights, b);
  if (!second.ok()) return second.status();
  return ExplainWith(**first, **second, *engine::TinyModel().tokenizer, {"alone", &a},
                     {"busy", &b});
}

TEST(ExplanationTest, NamesTheProductWhoseKernelChanged) {
  const trace::Trace alone = Record(engine::TinyConfig(), 1, 0, 40);
  const trace::Trace busy = Record(engine::TinyConfig(), 1, 9, 40);
  const auto e = ExplainTiny(alone, 1, busy, 1);
  ASSERT_TRUE(e.ok()) << e.status();
  // The prompt's rows meet the same kernel in both; the first row decoded alone does not.
  ASSERT_TRUE(e->origin.has_value());
  EXPECT_EQ(e->origin->position, 40);
  EXPECT_EQ(e->origin->layer, 0);
  EXPECT_EQ(e->origin->operation, model::Operation::kQkv);
  EXPECT_EQ(e->a.decision, "factored kernel for 1 row");
  EXPECT_EQ(e->b.decision, "tree kernel for 10 rows");
  EXPECT_EQ(e->a.step_rows, 1);
  EXPECT_EQ(e->b.step_rows, 10);
  EXPECT_EQ(e->b.step_sequences, 10);
  // The logits of the prompt's last row come from equal hidden states and another product.
  EXPECT_EQ(e->first_different_logits, 0);
  EXPECT_EQ(e->logits_decision_a, "factored kernel for 1 row");
  EXPECT_EQ(e->logits_decision_b, "tree kernel for 10 rows");
  EXPECT_THAT(e->summary, HasSubstr("layer 0, qkv gemm, row of output token 0"));
  // Drift: none in the prompt's rows, some in the others, in every layer.
  for (size_t layer = 0; layer < e->drift.size(); ++layer) {
    EXPECT_EQ(e->drift[layer].at(39).max_abs, 0);
    EXPECT_GT(e->drift[layer].at(40).max_abs, 0);
    EXPECT_GT(e->drift_by_layer[layer].rms_relative, 0);
    EXPECT_LT(e->drift_by_layer[layer].rms_relative, 1e-3);
    EXPECT_EQ(e->different_rows_by_layer[layer], static_cast<int64_t>(e->tokens.size()) - 40);
  }
  EXPECT_GT(e->logit_drift_max, 0);
}

TEST(ExplanationTest, NamesAttentionWhoseKeysWereCut) {
  EngineConfig config = engine::TinyConfig();
  config.scheduler.max_num_batched_tokens = 32;
  const trace::Trace one = Record(config, 1, 0, 300);
  const trace::Trace three = Record(config, 3, 0, 300);
  const auto e = ExplainTiny(one, 1, three, 3);
  ASSERT_TRUE(e.ok()) << e.status();
  ASSERT_TRUE(e->origin.has_value());
  EXPECT_EQ(e->origin->layer, 0);
  EXPECT_EQ(e->origin->operation, model::Operation::kAttention);
  EXPECT_THAT(e->a.decision, HasSubstr("KV in 1 piece"));
  EXPECT_THAT(e->b.decision, HasSubstr("KV in 2 pieces"));
}

TEST(ExplanationTest, NamesStrongKernelsOfANeighbour) {
  const trace::Trace alone = Record(engine::TinyConfig(), 1, 0, 40);
  const trace::Trace busy = Record(engine::TinyConfig(), 1, 1, 40, Policy::kPinned);
  const auto e = ExplainTiny(alone, 1, busy, 1);
  ASSERT_TRUE(e.ok()) << e.status();
  ASSERT_TRUE(e->origin.has_value());
  EXPECT_THAT(e->b.mode, HasSubstr("kernels (a request in the step asked)"));
}

TEST(ExplanationTest, SaysWhenNothingDiffers) {
  const trace::Trace alone = Record(engine::TinyConfig(), 1, 0, 40);
  const auto e = ExplainTiny(alone, 1, alone, 1);
  ASSERT_TRUE(e.ok()) << e.status();
  EXPECT_FALSE(e->origin.has_value());
  EXPECT_FALSE(e->first_different_logits.has_value());
  EXPECT_FALSE(e->first_different_token.has_value());
  EXPECT_THAT(e->summary, HasSubstr("Nothing differs"));
  EXPECT_EQ(e->drift_by_layer.at(0).max_abs, 0);
}

TEST(ExplanationTest, RefusesOtherPromptsAndTracesThatDoNotReplay) {
  const trace::Trace a = Record(engine::TinyConfig(), 1, 0, 40);
  const trace::Trace other = Record(engine::TinyConfig(), 1, 0, 41);
  EXPECT_TRUE(absl::IsInvalidArgument(ExplainTiny(a, 1, other, 1).status()));
  trace::Trace forged = a;
  forged.logit_rows[2].a ^= 1;
  EXPECT_TRUE(absl::IsFailedPrecondition(ExplainTiny(a, 1, forged, 1).status()));
}

TEST(RunPairTest, FindsOtherBitsUnderLoad) {
  RunPairOptions options;
  options.engine = engine::TinyConfig();
  options.prompt = RandomPrompt(3, 20);
  options.max_tokens = 12;
  options.ignore_eos = true;
  options.neighbours = 9;
  options.attempts = 20;
  const auto pair =
      RunAloneAndLoaded(options, engine::TinyBackend(2), *engine::TinyModel().checkpoint,
                        *engine::TinyModel().tokenizer, kWeights, nullptr);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_NE(pair->alone->logits_sha256, pair->loaded->logits_sha256);
  const auto e = ExplainTiny(*pair->alone, 2, *pair->loaded, 2);
  ASSERT_TRUE(e.ok()) << e.status();
  EXPECT_TRUE(e->origin.has_value());
}

TEST(ReportTest, TextJsonAndPageSayTheSame) {
  const trace::Trace alone = Record(engine::TinyConfig(), 1, 0, 40);
  const trace::Trace busy = Record(engine::TinyConfig(), 1, 9, 40);
  auto e = ExplainTiny(alone, 1, busy, 1);
  ASSERT_TRUE(e.ok()) << e.status();
  e->a.name = "</script><b>alone";
  const std::string text = ExplanationText(*e);
  EXPECT_THAT(text, HasSubstr("qkv gemm"));
  EXPECT_THAT(text, HasSubstr("factored kernel for 1 row"));
  const nlohmann::json data = ExplanationJson(*e, *engine::TinyModel().tokenizer);
  EXPECT_EQ(data["origin"]["operation"], "qkv gemm");
  EXPECT_EQ(data["layers"].size(), e->drift_by_layer.size());
  EXPECT_EQ(data["rms_relative_by_layer_and_position"][0].size(), e->tokens.size());
  EXPECT_EQ(data["tokens"].size(), e->tokens.size());
  const std::string page = ExplanationPage(data);
  EXPECT_THAT(page, Not(HasSubstr("EXPLAIN_DATA")));
  EXPECT_THAT(page, Not(HasSubstr("</script><b>")));  // no text ends the script
  EXPECT_THAT(page, HasSubstr("\\u003c/script\\u003e\\u003cb\\u003ealone"));
  EXPECT_THAT(page, HasSubstr("prefers-color-scheme: dark"));
  for (const char* outside : {"http://", "https://", "src=", "@import"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));  // opens offline
  }
}

}  // namespace
}  // namespace verbatim::replay

// Tests that a difference between answers of a mixture of experts is traced to the expert that was
// full.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/engine_test_support.h"
#include "engine/version.h"
#include "replay/explain_report.h"
#include "replay/explanation.h"
#include "replay/run_pair.h"

namespace verbatim::replay {
namespace {

using engine::CollectingSink;
using engine::EngineConfig;
using engine::GenerationRequest;
using engine::RandomPrompt;
using kernels::CapacityOverflow;
using kernels::Policy;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr char kWeights[] = "the weights";

EngineConfig Config(double capacity_factor, CapacityOverflow overflow) {
  EngineConfig config = engine::TinyConfig();
  config.moe_capacity_factor = capacity_factor;
  config.moe_overflow = overflow;
  config.allow_traces = true;
  return config;
}

GenerationRequest Request(std::vector<int32_t> prompt) {
  GenerationRequest request = engine::GreedyRequest(std::move(prompt), 6);
  request.policy = Policy::kThroughput;
  request.trace = true;
  request.read_prefix_cache = false;
  return request;
}

// The answer alone, or with its prompt in one step with that of a crowd: of one token, so that its
// rows all want the same experts, and before the answer's in the step.
trace::Trace Record(const EngineConfig& config, int prompt_tokens, int crowd_tokens) {
  const engine::TestModel& model = engine::TinyMoeModel();
  std::unique_ptr<engine::Engine> engine =
      *engine::Engine::Create(config, engine::TinyBackend(1), *model.checkpoint, *model.tokenizer);
  auto first = std::make_shared<CollectingSink>(), crowd = std::make_shared<CollectingSink>(),
       sink = std::make_shared<CollectingSink>();
  const std::vector<int32_t> prompt = RandomPrompt(7, prompt_tokens);
  const auto submit = [&] {
    if (crowd_tokens > 0) {
      GenerationRequest request = Request(std::vector<int32_t>(crowd_tokens, prompt[0]));
      ASSERT_TRUE(engine->Submit(std::move(request), crowd).ok());
    }
    ASSERT_TRUE(engine->Submit(Request(prompt), sink).ok());
  };
  // Both are submitted on the engine's thread at the last token of another request.
  first->on_delta = [&](int deltas) {
    if (deltas == 6) submit();
  };
  EXPECT_TRUE(engine->Submit(Request(RandomPrompt(1, 4)), first).ok());
  EXPECT_TRUE(first->Wait().ok());
  EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
  trace::Trace trace = *sink->samples.at(0).finished.trace;
  trace.identity.version = engine::kVersion;
  trace.identity.weights_sha256 = kWeights;
  return trace;
}

absl::StatusOr<Explanation> ExplainTiny(const trace::Trace& a, const trace::Trace& b) {
  auto replayer =
      Replayer::CreateOn(engine::TinyBackend(1), *engine::TinyMoeModel().checkpoint, kWeights, a);
  if (!replayer.ok()) return replayer.status();
  return ExplainWith(**replayer, **replayer, *engine::TinyMoeModel().tokenizer, {"alone", &a},
                     {"busy", &b});
}

class FullExpertTest : public testing::TestWithParam<CapacityOverflow> {};

TEST_P(FullExpertTest, IsNamedBeforeAnythingElse) {
  const bool next = GetParam() == CapacityOverflow::kNext;
  // Alone there is a place for every token. The prompt is long enough for every expert to get
  // so many of its tokens that their number chooses no other kernel.
  const trace::Trace alone = Record(Config(0, GetParam()), 40, 0);
  const trace::Trace busy = Record(Config(0.75, GetParam()), 40, 20);
  const auto e = ExplainTiny(alone, busy);
  ASSERT_TRUE(e.ok()) << e.status();
  ASSERT_TRUE(e->origin.has_value());
  EXPECT_EQ(e->origin->operation, model::Operation::kDown);
  ASSERT_TRUE(e->by_capacity) << e->summary;
  EXPECT_FALSE(e->a.full_expert.has_value());
  ASSERT_TRUE(e->b.full_expert.has_value());
  const FullExpert& full = *e->b.full_expert;
  EXPECT_EQ(full.layer, e->origin->layer);
  EXPECT_EQ(full.position, e->origin->position);
  EXPECT_EQ(full.instead < 0, !next);
  // ceil(0.75 · 60 rows · 2 of 6 experts).
  EXPECT_EQ(full.tokens, 15);
  const std::string outcome = next ? absl::StrCat("rerouted to ", full.instead) : "lost";
  EXPECT_THAT(e->summary,
              StartsWith(absl::StrCat("Prompt token ", full.position, ": expert ", full.expert,
                                      " full in layer ", full.layer, ", ", outcome, " (busy")));
  EXPECT_THAT(e->b.decision, HasSubstr(absl::StrCat("expert ", full.expert, " full, ", outcome)));
  EXPECT_THAT(e->a.decision, Not(HasSubstr("full")));
  EXPECT_EQ(e->a.lost_slots + e->a.rerouted_slots, 0);
  EXPECT_GT(next ? e->b.rerouted_slots : e->b.lost_slots, 0);
  EXPECT_EQ(e->b.slots, static_cast<int64_t>(e->tokens.size()) * 2 *
                            static_cast<int64_t>(busy.mixture.layers.size()));

  const nlohmann::json data = ExplanationJson(*e, *engine::TinyMoeModel().tokenizer);
  EXPECT_EQ(data["by_capacity"], true);
  EXPECT_EQ(data["a"]["full_expert"], nullptr);
  EXPECT_EQ(data["b"]["full_expert"]["expert"], full.expert);
  EXPECT_EQ(data["b"]["full_expert"]["instead"], full.instead);
  EXPECT_EQ(data["b"]["expert_slots"]["lost"], e->b.lost_slots);
  EXPECT_THAT(ExplanationText(*e), HasSubstr(absl::StrCat(e->b.lost_slots, " lost, ")));
  EXPECT_THAT(ExplanationPage(data), HasSubstr("\"by_capacity\":true"));
}

INSTANTIATE_TEST_SUITE_P(Overflows, FullExpertTest,
                         testing::Values(CapacityOverflow::kDrop, CapacityOverflow::kNext));

// Without limits the number of an expert's tokens still chooses its kernels in fp32.
TEST(ExpertKernelTest, TokensOfAnExpertAreNamed) {
  const EngineConfig config = Config(0, CapacityOverflow::kDrop);
  const trace::Trace alone = Record(config, 6, 0);
  const trace::Trace busy = Record(config, 6, 40);
  const auto e = ExplainTiny(alone, busy);
  ASSERT_TRUE(e.ok()) << e.status();
  ASSERT_TRUE(e->origin.has_value());
  EXPECT_FALSE(e->by_capacity);
  EXPECT_EQ(e->origin->operation, model::Operation::kDown) << e->summary;
  EXPECT_THAT(e->a.decision, HasSubstr(" on factored for "));
  EXPECT_THAT(e->b.decision, HasSubstr(" on tree for "));
  EXPECT_NE(e->a.decision, e->b.decision);
}

// When neighbours come is a matter of timing, and so is whose slots are rerouted among them; a long
// prompt alone always fills experts.
TEST(RunPairMoeTest, FindsFullExpertsUnderLoad) {
  RunPairOptions options;
  options.engine = Config(0.5, CapacityOverflow::kNext);
  options.prompt = RandomPrompt(3, 20);
  options.max_tokens = 12;
  options.ignore_eos = true;
  options.neighbours = 9;
  options.attempts = 20;
  const engine::TestModel& model = engine::TinyMoeModel();
  const auto pair = RunAloneAndLoaded(options, engine::TinyBackend(1), *model.checkpoint,
                                      *model.tokenizer, kWeights, nullptr);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_NE(pair->alone->logits_sha256, pair->loaded->logits_sha256);
  const auto e = ExplainTiny(*pair->alone, *pair->loaded);
  ASSERT_TRUE(e.ok()) << e.status();
  EXPECT_TRUE(e->origin.has_value());
  EXPECT_GT(e->a.rerouted_slots, 0);
}

}  // namespace
}  // namespace verbatim::replay

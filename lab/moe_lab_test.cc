// Counting of changed answers, crowded experts, and what the reports of mixtures of experts say,
// from made-up answers; the search and the whole demonstration on a tiny model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lab/moe_attack_search.h"
#include "lab/moe_experiment.h"
#include "lab/moe_page.h"
#include "lab/moe_report.h"
#include "model/checkpoint.h"
#include "report/html_page.h"

namespace verbatim::lab {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kMixture[] = "tests/fixtures/reference/gguf_mixtral_q4_1.gguf";
constexpr char kDense[] = "tests/fixtures/reference/gguf_llama_f32.gguf";

TEST(ParseExpertLimit, TakesFactorsAndOverflows) {
  EXPECT_EQ(ParseExpertLimit("off")->capacity_factor, 0);
  EXPECT_EQ(ParseExpertLimit("1.25")->Name(), "1.25 drop");
  EXPECT_EQ(ParseExpertLimit("2:next")->Name(), "2 next");
  for (const char* bad : {"", "0", "-1", "nan", "inf", "1:", "1:skip", "off:next", "1:drop:next"}) {
    EXPECT_EQ(ParseExpertLimit(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ExpertSlots, CountsWhatHappenedBetweenTwoLooks) {
  v1::GetServerInfoResponse before, after;
  for (const auto& [info, scale] : {std::pair{&before, 1}, {&after, 3}}) {
    v1::ExpertStatistics* layer = info->add_experts();
    layer->set_tokens(10 * scale);
    layer->set_lost_slots(2 * scale);
    layer->set_rerouted_slots(scale);
    layer->add_tokens_per_expert(12 * scale);
    layer->add_tokens_per_expert(4 * scale);
  }
  ExpertSlots slots;
  slots.Add(before, after, /*experts_per_token=*/2);
  EXPECT_EQ(slots.slots, 40);
  EXPECT_EQ(slots.lost, 4);
  EXPECT_EQ(slots.rerouted, 2);
  EXPECT_DOUBLE_EQ(slots.lost_share(), 0.1);
  EXPECT_DOUBLE_EQ(slots.imbalance, 1.5);
  EXPECT_EQ(ExpertSlots().lost_share(), 0);
}

// Two experts a token. The attackers' rows have expert 0 first and expert 1 second.
TEST(Crowding, SlotsGoRankByRank) {
  const Routing crowd = {{{0, 1, 0, 1}, {0.5, 0.5, 0.5, 0.5}}};
  const auto victim = [](int32_t first, int32_t second) {
    return Routing{{{first, second}, {0.75, 0.25}}};
  };
  EXPECT_DOUBLE_EQ(Crowding(victim(0, 1), 0, crowd, 2, 100, 50), 1);
  EXPECT_DOUBLE_EQ(Crowding(victim(2, 3), 0, crowd, 2, 100, 50), 0);
  // Of rank 1 behind its own rank 0 only: nobody stands before a victim's first choice of expert 1.
  EXPECT_DOUBLE_EQ(Crowding(victim(1, 2), 0, crowd, 2, 100, 50), 0);
  EXPECT_DOUBLE_EQ(Crowding(victim(2, 0), 0, crowd, 2, 100, 50), 0.25);
  // Half full.
  EXPECT_DOUBLE_EQ(Crowding(victim(0, 2), 0, crowd, 2, 100, 200), 0.375);
  // The mean over layers, of the row asked for.
  Routing two = victim(0, 1);
  two[0].experts = {2, 3, 0, 1};
  two[0].weights = {0.5, 0.5, 0.75, 0.25};
  two.push_back({{0, 1, 2, 3}, {0.75, 0.25, 0.75, 0.25}});
  EXPECT_DOUBLE_EQ(Crowding(two, 1, {crowd[0], crowd[0]}, 2, 100, 50), 0.5);
}

TEST(FindCrowdingTokens, TheBestIsNoWorseThanTheMean) {
  const auto checkpoint = model::Checkpoint::Open(kMixture);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::vector<std::vector<int32_t>> victims = {{1, 2, 3, 4, 5}, {7}};
  AttackSearchOptions options;
  options.attackers = 4;
  options.attacker_tokens = 8;
  options.candidates = 16;
  options.threads = 1;
  const auto found = FindCrowdingTokens(**checkpoint, victims, options);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 2U);
  for (const CrowdingToken& token : *found) {
    EXPECT_GT(token.crowding, token.mean_crowding);
    EXPECT_LE(token.crowding, 1 + 1e-6);
    EXPECT_GT(token.mean_crowding, 0);
  }
  // What is computed beside a victim does not matter to its routing.
  options.attacker_tokens = 32;
  options.attackers = 1;
  const auto alone = FindCrowdingTokens(**checkpoint, {victims.data() + 1, 1}, options);
  const auto beside = FindCrowdingTokens(**checkpoint, victims, options);
  ASSERT_TRUE(alone.ok() && beside.ok());
  EXPECT_EQ((*alone)[0].token, (*beside)[1].token);
  EXPECT_DOUBLE_EQ((*alone)[0].crowding, (*beside)[1].crowding);

  EXPECT_FALSE(FindCrowdingTokens(**checkpoint, {{}}, options).ok());
  options.candidates = 0;
  EXPECT_FALSE(FindCrowdingTokens(**checkpoint, victims, options).ok());
  const auto dense = model::Checkpoint::Open(kDense);
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_THAT(std::string(FindCrowdingTokens(**dense, victims, {}).status().message()),
              HasSubstr("dense"));
}

// Two prompts of two answers. With a limit one answer of the first differs, from token 1 on.
MoeExperimentResult MadeUpResult(const std::string& text) {
  MoeExperimentResult result;
  result.options.demo.prompts = {"p", "q"};
  result.options.demo.repeats = 2;
  result.derived = {{"parent", {{"name", "a dense model"}}}};
  result.victims = {{"p", {1, 2}, {7, 0.5, 0.25}}, {"q", {3}, {8, 0.5, 0.25}}};
  const ExpertLimit limit{.capacity_factor = 1.25};
  for (const MoeArm& arm :
       {ThroughputArm("throughput", {}), ThroughputArm("throughput_capacity", limit),
        DeterministicArm("deterministic", limit)}) {
    const bool limited = arm.mode.key == "throughput_capacity";
    MoeArmResult& added = result.arms.emplace_back();
    added.arm = arm;
    added.neighbours.limit = arm.limit;
    DemoModeResult& among = added.neighbours.among;
    among.mode = arm.mode;
    among.requests = 4;
    among.prompts.resize(2);
    for (client::Completions& prompt : among.prompts) {
      prompt.Add(text, {1, 2, 3}, "h1");
      added.neighbours.alone.push_back({text, {1, 2, 3}, "h1"});
    }
    among.prompts[0].Add(limited ? "other" : text,
                         limited ? std::vector<int32_t>{1, 9} : std::vector<int32_t>{1, 2, 3},
                         limited ? "h2" : "h1");
    among.prompts[1].Add(text, {1, 2, 3}, arm.mode.key == "throughput" ? "h3" : "h1");
    AttackResult& attack = added.attack.emplace();
    attack.limit = arm.limit;
    for (size_t v = 0; v < 2; ++v) {
      attack.attacked.push_back(
          {v, text, limited, limited, limited ? std::optional<int64_t>(0) : std::nullopt});
      attack.ordinary.push_back({v, text, limited && v == 0, limited, std::nullopt});
    }
  }
  return result;
}

TEST(NeighboursResult, ComparesWithTheAnswerAlone) {
  const MoeExperimentResult result = MadeUpResult("text");
  const NeighboursResult& limited = result.Find("throughput_capacity")->neighbours;
  EXPECT_EQ(limited.answers_changed(), 1);
  EXPECT_EQ(limited.answers_with_other_bits(), 1);
  EXPECT_EQ(limited.prompts_changed(), 1);
  EXPECT_EQ(limited.first_split(), 1);
  const NeighboursResult& unlimited = result.Find("throughput")->neighbours;
  EXPECT_EQ(unlimited.answers_changed(), 0);
  EXPECT_EQ(unlimited.answers_with_other_bits(), 1);
  EXPECT_FALSE(unlimited.first_split().has_value());
  EXPECT_EQ(result.Find("nothing"), nullptr);
}

// All answers among neighbours agree with each other and none with the one alone.
TEST(NeighboursResult, AgreementAmongNeighboursIsNotEnough) {
  MoeExperimentResult result = MadeUpResult("text");
  NeighboursResult& strict = result.arms[2].neighbours;
  EXPECT_FALSE(result.PromiseBroken());
  strict.alone[1].logits_sha256 = "h9";
  EXPECT_EQ(strict.answers_with_other_bits(), 2);
  EXPECT_EQ(strict.answers_changed(), 0);
  EXPECT_TRUE(result.PromiseBroken());
  EXPECT_THAT(MoeTable(result), HasSubstr("BROKE ITS PROMISE"));
}

TEST(MoeReport, AnAttackThatMovesBitsBreaksThePromise) {
  MoeExperimentResult result = MadeUpResult("text");
  EXPECT_THAT(MoeTable(result), Not(HasSubstr("BROKE ITS PROMISE")));
  result.arms[2].attack->attacked[1].other_bits = true;
  EXPECT_TRUE(result.PromiseBroken());
  result.arms[2].attack->attacked[1].other_bits = false;
  result.arms[0].attack->attacked[1].other_bits = true;  // promises nothing
  EXPECT_FALSE(result.PromiseBroken());
}

TEST(MoeJson, HasTheFiguresThatReadersLookFor) {
  const nlohmann::json data = MoeJson(MadeUpResult("text"), {});
  for (const char* mode : {"throughput_capacity", "throughput", "deterministic"}) {
    const bool limited = mode == std::string("throughput_capacity");
    const nlohmann::json& figures = data["modes"][mode];
    EXPECT_EQ(figures["prompts"], 2);
    EXPECT_EQ(figures["requests"], 4);
    EXPECT_EQ(figures["unique_completions_max"], limited ? 2 : 1);
    EXPECT_EQ(figures["unique_logit_hashes_max"], mode == std::string("deterministic") ? 1 : 2);
    EXPECT_EQ(figures["answers_changed"], limited ? 1 : 0);
    EXPECT_EQ(figures["first_split_token"].is_null(), !limited);
    const nlohmann::json& attack = data["attack"][mode];
    EXPECT_EQ(attack["trials"], 2);
    EXPECT_DOUBLE_EQ(attack["success_rate"], limited ? 1 : 0);
    EXPECT_LT(attack["interval"][0], attack["interval"][1]);
    EXPECT_DOUBLE_EQ(attack["ordinary_neighbours"]["success_rate"], limited ? 0.5 : 0);
  }
  EXPECT_EQ(data["deterministic_promise_kept"], true);
  EXPECT_THAT(data["explanation"][0].get<std::string>(), HasSubstr("not trained"));
  EXPECT_THAT(MoeTable(MadeUpResult("text")), HasSubstr("not trained"));
}

TEST(MoePage, IsWholeAndKeepsHostileTextsInside) {
  const nlohmann::json data = MoeJson(MadeUpResult("</script><script>alert(1)</script>"), {});
  const std::string page = MoePage(data);
  EXPECT_THAT(page, HasSubstr(report::ScriptSafeJson(data)));
  for (const char* marker : {"/*PAGE_STYLE*/", "/*PAGE_HELPERS*/", "/*DEMO_DATA*/", "://"}) {
    // The one address is the name of SVG's elements.
    const size_t at = page.find(marker);
    EXPECT_TRUE(at == std::string::npos || page.compare(at, 10, "://www.w3.") == 0) << marker;
  }
  EXPECT_THAT(page, HasSubstr("function perPromptChart"));
  EXPECT_THAT(page, HasSubstr(".card"));
  const size_t closing = page.find("</script");
  ASSERT_NE(closing, std::string::npos);
  EXPECT_EQ(page.find("</script", closing + 1), std::string::npos);
}

}  // namespace
}  // namespace verbatim::lab

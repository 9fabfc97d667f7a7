// Tests that answers of a mixture of experts are repeated bit by bit, lost experts included.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "engine/engine_test_support.h"
#include "engine/version.h"
#include "replay/replayer.h"

namespace verbatim::replay {
namespace {

using engine::CollectingSink;
using engine::EngineConfig;
using engine::GenerationRequest;
using engine::RandomPrompt;
using kernels::ActivationType;
using kernels::CapacityOverflow;
using kernels::Policy;
using testing::HasSubstr;

constexpr char kWeights[] = "the weights";

struct Circumstance {
  std::string name;
  EngineConfig config = engine::TinyConfig();
  int threads = 2;
  bool strong_neighbours = false;
  bool shared_prefix = false;
  int longer = 0;  // output tokens besides; then every request is traced
  Policy determinism = Policy::kThroughput;
};

GenerationRequest Request(std::vector<int32_t> prompt, int max_tokens, Policy policy) {
  GenerationRequest request = engine::GreedyRequest(std::move(prompt), max_tokens);
  request.policy = policy;
  return request;
}

// Traces of some answers that were given while neighbours, half of them of one token again and
// again so that they crowd its experts, came and went.
std::vector<trace::Trace> Record(const Circumstance& c) {
  EngineConfig config = c.config;
  config.allow_traces = true;
  const engine::TestModel& model = engine::TinyMoeModel();
  std::unique_ptr<engine::Engine> engine = *engine::Engine::Create(
      config, engine::TinyBackend(c.threads), *model.checkpoint, *model.tokenizer);
  const std::vector<int32_t> prefix = RandomPrompt(99, c.shared_prefix ? 40 : 0);
  struct Entry {
    GenerationRequest request;
    std::shared_ptr<CollectingSink> sink = std::make_shared<CollectingSink>();
  };
  std::vector<Entry> entries;
  for (int i = 0; i < 12; ++i) {
    std::vector<int32_t> prompt = prefix;
    const std::vector<int32_t> rest =
        i % 2 == 0 ? std::vector<int32_t>(10 + 4 * i, 20 + 7 * i) : RandomPrompt(i, 5 + 11 * i);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    const bool strong = c.strong_neighbours && i % 3 == 0;
    entries.push_back({Request(prompt, 8 + 5 * (i % 4) + c.longer,
                               strong ? Policy::kPinned : Policy::kThroughput)});
    entries.back().request.trace = c.longer > 0 && !strong;
    if (i % 3 != 1) continue;
    entries.push_back({Request(prompt, 12, c.determinism)});
    entries.back().request.trace = true;
    entries.back().request.trace_layers = i == 4;
  }
  // Every second token brings the next request, on the engine's thread.
  size_t next = 0;
  int deltas = 0;
  const auto submit_next = [&] {
    const size_t i = next++;
    ASSERT_TRUE(engine->Submit(entries[i].request, entries[i].sink).ok());
  };
  for (Entry& entry : entries) {
    entry.sink->on_delta = [&](int) {
      if (++deltas % 2 == 0 && next < entries.size()) submit_next();
    };
  }
  submit_next();
  std::vector<trace::Trace> traces;
  for (const auto& [request, sink] : entries) {
    EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
    if (!request.trace) continue;
    traces.push_back(*sink->samples.at(0).finished.trace);
    traces.back().identity.version = engine::kVersion;
    traces.back().identity.weights_sha256 = kWeights;
  }
  return traces;
}

std::unique_ptr<Replayer> ReplayerOf(const trace::Trace& trace, int threads = 2) {
  return *Replayer::CreateOn(engine::TinyBackend(threads), *engine::TinyMoeModel().checkpoint,
                             kWeights, trace);
}

struct Slots {
  int64_t all = 0, lost = 0, rerouted = 0;
};

Slots Count(const trace::Trace& trace) {
  Slots slots;
  for (const trace::Step& step : trace.steps) {
    for (const trace::LayerRouting& layer : step.routing) {
      const int64_t lost = std::count(layer.experts.begin(), layer.experts.end(), -1);
      slots.all += static_cast<int64_t>(layer.experts.size());
      slots.lost += lost;
      slots.rerouted += static_cast<int64_t>(layer.wanted.size()) - lost;
    }
  }
  return slots;
}

std::vector<Circumstance> Circumstances() {
  std::vector<Circumstance> all(8);
  all[0].name = "no limit";
  all[1].name = "no limit, bf16 activations";
  all[1].config.throughput_activations = ActivationType::kBF16;
  all[2].name = "drop";
  all[2].config.moe_capacity_factor = 0.5;
  all[3].name = "next";
  all[3].config.moe_capacity_factor = 1.5;
  all[3].config.moe_overflow = CapacityOverflow::kNext;
  all[4].name = "next until nobody has place, bf16 activations, small chunks";
  all[4].config.moe_capacity_factor = 0.25;
  all[4].config.moe_overflow = CapacityOverflow::kNext;
  all[4].config.throughput_activations = ActivationType::kBF16;
  all[4].config.scheduler.max_num_batched_tokens = 24;
  all[5].name = "drop beside strong rows";
  all[5].config.moe_capacity_factor = 0.5;
  all[5].strong_neighbours = true;
  all[6].name = "drop, prefix hits and preemption, three threads";
  all[6].config.moe_capacity_factor = 0.5;
  all[6].config.scheduler.num_pages = 24;
  all[6].shared_prefix = true;
  all[6].threads = 3;
  all[6].longer = 50;
  all[7].name = "a strong answer beside limited ones";
  all[7].config.moe_capacity_factor = 0.5;
  all[7].determinism = Policy::kPinned;
  return all;
}

class ReplayMoeTest : public testing::TestWithParam<int> {};

TEST_P(ReplayMoeTest, ReproducesEveryBit) {
  const Circumstance c = Circumstances()[GetParam()];
  SCOPED_TRACE(c.name);
  Slots slots;
  int cached = 0, preempted = 0;
  for (const trace::Trace& recorded : Record(c)) {
    ASSERT_TRUE(recorded.replayable()) << recorded.not_replayable;
    const std::string json = trace::ToJson(recorded);
    const auto trace = trace::Parse(json, "trace");
    ASSERT_TRUE(trace.ok()) << trace.status();
    EXPECT_EQ(trace::ToJson(*trace), json);
    EXPECT_EQ(trace->mixture.layers.size(), trace->steps.at(0).routing.size());
    std::unique_ptr<Replayer> replayer = ReplayerOf(*trace, c.threads);
    for (uint64_t seed = 1; seed <= (c.longer > 0 ? 1 : 2); ++seed) {
      const auto result = replayer->Replay(*trace, {.filler_seed = seed});
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(result->reproduced())
          << "token " << result->first_difference.value_or(-1) << " of " << trace->output_tokens()
          << "; " << result->decision_difference << "; " << result->routing_difference;
      EXPECT_EQ(result->logits_sha256, trace->logits_sha256);
    }
    const Slots mine = Count(*trace);
    slots.all += mine.all;
    slots.lost += mine.lost;
    slots.rerouted += mine.rerouted;
    cached += trace->cached_tokens;
    preempted += trace->preemptions;
  }
  // The circumstance really was what its name says.
  const bool limited = c.config.moe_capacity_factor > 0 && c.determinism == Policy::kThroughput;
  const bool next = c.config.moe_overflow == CapacityOverflow::kNext;
  EXPECT_GT(slots.all, 0);
  // With fewer places than slots even the next expert is full for some.
  EXPECT_EQ(slots.lost > 0, limited && (!next || c.config.moe_capacity_factor < 1)) << slots.lost;
  EXPECT_EQ(slots.rerouted > 0, limited && next) << slots.rerouted;
  if (c.shared_prefix) {
    EXPECT_GT(cached, 0);
  }
  if (c.config.scheduler.num_pages < 30) {
    EXPECT_GT(preempted, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Circumstances, ReplayMoeTest,
                         testing::Range(0, static_cast<int>(Circumstances().size())));

// The trace among several whose `layer` of some step satisfies the condition, with that place.
template <typename Condition>
std::optional<std::tuple<trace::Trace, size_t, size_t>> Find(const std::vector<trace::Trace>& all,
                                                             Condition condition) {
  for (const trace::Trace& trace : all) {
    for (size_t s = 0; s < trace.steps.size(); ++s) {
      for (size_t l = 0; l < trace.steps[s].routing.size(); ++l) {
        if (condition(trace.steps[s], trace.steps[s].routing[l])) return std::tuple(trace, s, l);
      }
    }
  }
  return std::nullopt;
}

// Each recorded decision matters: the answer comes out otherwise without it.
TEST(ReplayMoeTamperedTest, ALostExpertMatters) {
  const auto found =
      Find(Record(Circumstances()[2]),
           [](const trace::Step&, const trace::LayerRouting& l) { return !l.wanted.empty(); });
  ASSERT_TRUE(found.has_value());
  auto [trace, s, l] = *found;
  trace::LayerRouting& layer = trace.steps[s].routing[l];
  const auto [slot, expert] = layer.wanted.front();
  layer.wanted.erase(layer.wanted.begin());
  layer.experts[slot] = expert;
  for (auto& [e, tokens] : layer.tokens) tokens += e == expert;
  ASSERT_TRUE(trace::CheckConsistency(trace).ok()) << trace::CheckConsistency(trace);
  const auto result = ReplayerOf(trace)->Replay(trace, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->first_difference.has_value());
}

TEST(ReplayMoeTamperedTest, AnExpertsTokensMatterInFp32) {
  // An expert with one to four tokens may factor scales out; with five it does not.
  const auto found =
      Find(Record(Circumstances()[0]), [](const trace::Step& step, const trace::LayerRouting& l) {
        return step.rows() > 8 && step.own_rows() == 1 && l.tokens[0].second <= 2;
      });
  ASSERT_TRUE(found.has_value());
  auto [trace, s, l] = *found;
  int32_t many = 0;
  for (const trace::KernelChoice& choice : trace.kernels) {
    if (choice.experts && choice.rows > 4 && choice.rows <= 8) many = choice.rows;
  }
  ASSERT_GT(many, 0);
  trace.steps[s].routing[l].tokens[0].second = many;
  ASSERT_TRUE(trace::CheckConsistency(trace).ok()) << trace::CheckConsistency(trace);
  const auto result = ReplayerOf(trace)->Replay(trace, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->first_difference.has_value());
}

TEST(ReplayMoeTamperedTest, OtherWishesAreReported) {
  const auto found =
      Find(Record(Circumstances()[2]), [](const trace::Step& step, const trace::LayerRouting& l) {
        return !l.wanted.empty() && step.own_rows() > 8 && l.tokens.size() == 6;
      });
  ASSERT_TRUE(found.has_value());
  auto [trace, s, l] = *found;
  int32_t& wanted = trace.steps[s].routing[l].wanted.front().second;
  wanted = (wanted + 1) % 6;
  ASSERT_TRUE(trace::CheckConsistency(trace).ok()) << trace::CheckConsistency(trace);
  const auto result = ReplayerOf(trace)->Replay(trace, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->reproduced());
  EXPECT_THAT(result->routing_difference, HasSubstr("wants expert"));
}

TEST(ReplayMoeTamperedTest, OtherMixturesAndKernelsAreRefused) {
  trace::Trace trace = Record(Circumstances()[0]).at(0);
  std::unique_ptr<Replayer> replayer = ReplayerOf(trace);
  trace::Trace other = trace;
  other.mixture.num_experts = 7;
  EXPECT_TRUE(absl::IsFailedPrecondition(replayer->Replay(other, {}).status()));
  other = trace;
  const auto choice = std::find_if(other.kernels.begin(), other.kernels.end(),
                                   [](const trace::KernelChoice& k) { return k.experts; });
  ASSERT_NE(choice, other.kernels.end());
  choice->kernels[0].second = "onednn";
  const auto result = replayer->Replay(other, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->decision_difference, HasSubstr("tokens of an expert: the trace says"));
}

}  // namespace
}  // namespace verbatim::replay

// Mixtures of experts in whole forward passes: a row's bits do not depend on its batch, capacity
// limits touch only the rows that they are for, and what is observed agrees with what is counted.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/reference/forward_runner.h"

namespace verbatim::testing {
namespace {

using kernels::CapacityOverflow;
using kernels::Policy;
using model::Operation;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr int64_t kMaxTokens = 96;
constexpr int64_t kSequences = 4;

std::string PathOf(const std::string& name) { return "tests/fixtures/reference/" + name; }

std::unique_ptr<ForwardRunner> RunnerOf(const std::string& name, double capacity_factor = 0,
                                        CapacityOverflow overflow = CapacityOverflow::kDrop) {
  absl::StatusOr<std::unique_ptr<ForwardRunner>> runner =
      ForwardRunner::CreateLimited(PathOf(name), kMaxTokens, kSequences, capacity_factor, overflow);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return runner.ok() ? *std::move(runner) : nullptr;
}

std::vector<ForwardSequence> Prompts(int64_t vocab) {
  std::mt19937 rng(11);
  std::vector<ForwardSequence> sequences;
  for (int32_t length : {1, 9, 40, 90}) {
    ForwardSequence s;
    for (int32_t i = 0; i < length; ++i) s.ids.push_back(static_cast<int32_t>(rng() % vocab));
    for (int32_t i = 0; i < length; i += 4) s.positions.push_back(i);
    sequences.push_back(s);
  }
  return sequences;
}

using Logits = std::vector<std::vector<LogitRow>>;

Logits LogitsOf(ForwardRunner& runner, const std::vector<ForwardSequence>& sequences, Policy policy,
                int64_t chunk) {
  absl::StatusOr<Logits> logits = runner.Prefill(sequences, {.policy = policy}, chunk);
  EXPECT_TRUE(logits.ok()) << logits.status();
  return logits.ok() ? *std::move(logits) : Logits(sequences.size());
}

int64_t DifferentRows(const std::vector<LogitRow>& a, const std::vector<LogitRow>& b) {
  EXPECT_EQ(a.size(), b.size());
  int64_t different = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    different += std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0;
  }
  return different;
}

class MoeForwardTest : public ::testing::TestWithParam<const char*> {};

TEST_P(MoeForwardTest, ARowHasTheSameBitsInEveryBatch) {
  const std::unique_ptr<ForwardRunner> runner = RunnerOf(GetParam());
  ASSERT_NE(runner, nullptr);
  const std::vector<ForwardSequence> prompts = Prompts(runner->config().vocab_size);
  for (const Policy policy : {Policy::kPortable, Policy::kPinned}) {
    const Logits together = LogitsOf(*runner, prompts, policy, 0);
    const Logits chunks = LogitsOf(*runner, prompts, policy, 7);
    for (size_t s = 0; s < prompts.size(); ++s) {
      EXPECT_EQ(DifferentRows(together[s], chunks[s]), 0) << "chunks of 7, sequence " << s;
      const Logits alone = LogitsOf(*runner, {prompts[s]}, policy, 1);
      EXPECT_EQ(DifferentRows(together[s], alone[0]), 0) << "token by token, sequence " << s;
    }
  }
}

// The first sequences are exempt, the last one is limited, in one batch.
TEST_P(MoeForwardTest, CapacityTouchesOnlyTheRowsThatItIsFor) {
  const std::unique_ptr<ForwardRunner> unlimited = RunnerOf(GetParam());
  ASSERT_NE(unlimited, nullptr);
  const std::vector<ForwardSequence> prompts = Prompts(unlimited->config().vocab_size);
  const Logits expected = LogitsOf(*unlimited, prompts, Policy::kPortable, 0);
  for (const CapacityOverflow overflow : {CapacityOverflow::kDrop, CapacityOverflow::kNext}) {
    const std::unique_ptr<ForwardRunner> limited = RunnerOf(GetParam(), 0.5, overflow);
    ASSERT_NE(limited, nullptr);
    limited->set_exempt({true, true, true, false});
    const Logits logits = LogitsOf(*limited, prompts, Policy::kPortable, 0);
    for (size_t s = 0; s + 1 < prompts.size(); ++s) {
      EXPECT_EQ(DifferentRows(expected[s], logits[s]), 0) << "sequence " << s;
    }
    EXPECT_GT(DifferentRows(expected.back(), logits.back()), 0);
    limited->set_exempt({true, true, true, true});
    EXPECT_EQ(
        DifferentRows(expected.back(), LogitsOf(*limited, prompts, Policy::kPortable, 0).back()),
        0);
  }
  // A factor so large that nobody meets the limit.
  const std::unique_ptr<ForwardRunner> huge = RunnerOf(GetParam(), 1e300);
  ASSERT_NE(huge, nullptr);
  const Logits logits = LogitsOf(*huge, prompts, Policy::kPortable, 0);
  for (size_t s = 0; s < prompts.size(); ++s) {
    EXPECT_EQ(DifferentRows(expected[s], logits[s]), 0) << "sequence " << s;
  }
}

// Adds up what it is shown.
class Recorder final : public model::ForwardObserver {
 public:
  explicit Recorder(const model::ModelConfig& config) : config_(config) {
    for (int64_t i = 0; i < config.num_layers; ++i) {
      counted.push_back({.layer = i});
      counted.back().tokens_per_expert.resize(config.moe.num_experts);
    }
  }
  void OnOutput(const model::ObservedRows& output) override {
    operations.emplace_back(output.layer, output.operation);
    if (output.operation == Operation::kRouter) {
      EXPECT_EQ(output.cols, config_.moe.num_experts);
    }
  }
  void OnRouting(const model::ObservedRouting& routing) override {
    EXPECT_EQ(operations.back(), std::make_pair(routing.layer, Operation::kRouter));
    const int64_t slots = routing.tokens * routing.top_k;
    const absl::Span<const int32_t> experts(routing.experts, slots), wanted(routing.wanted, slots);
    model::MoeStatistics& layer = counted[routing.layer];
    layer.tokens += routing.tokens;
    for (int64_t t = 0; t < routing.tokens; ++t) {
      float sum = 0;
      for (int64_t r = 0; r < routing.top_k; ++r) {
        const int64_t slot = t * routing.top_k + r;
        EXPECT_GE(wanted[slot], 0);
        EXPECT_LT(wanted[slot], routing.num_experts);
        if (experts[slot] < 0) {
          EXPECT_EQ(routing.weights[slot], 0);
          ++layer.lost_slots;
        } else {
          ++layer.tokens_per_expert[experts[slot]];
          layer.rerouted_slots += experts[slot] == wanted[slot] ? 0 : 1;
        }
        sum += routing.weights[slot];
        all_wanted = all_wanted && experts[slot] == wanted[slot];
      }
      if (config_.moe.normalise && all_wanted) {
        EXPECT_NEAR(sum, config_.moe.scale, 1e-6);
      }
      EXPECT_LE(sum, config_.moe.scale * 1.000001);
    }
  }
  std::vector<std::pair<int64_t, Operation>> operations;
  std::vector<model::MoeStatistics> counted;
  bool all_wanted = true;

 private:
  const model::ModelConfig& config_;
};

TEST_P(MoeForwardTest, WhatIsShownIsWhatIsCounted) {
  for (const double factor : {0.0, 0.5}) {
    for (const CapacityOverflow overflow : {CapacityOverflow::kDrop, CapacityOverflow::kNext}) {
      const std::unique_ptr<ForwardRunner> runner = RunnerOf(GetParam(), factor, overflow);
      ASSERT_NE(runner, nullptr);
      const model::ModelConfig& config = runner->config();
      const std::vector<ForwardSequence> prompts = Prompts(config.vocab_size);
      Recorder recorder(config);
      runner->transformer().set_observer(&recorder);
      LogitsOf(*runner, prompts, Policy::kThroughput, 32);
      runner->transformer().set_observer(nullptr);
      EXPECT_EQ(recorder.all_wanted, factor == 0);
      const auto statistics = runner->transformer().ExpertStatistics();
      ASSERT_TRUE(statistics.ok()) << statistics.status();
      size_t mixtures = 0;
      int64_t lost = 0, rerouted = 0;
      for (int64_t i = 0; i < config.num_layers; ++i) mixtures += config.moe.IsMoe(i);
      ASSERT_EQ(statistics->size(), mixtures);
      for (const model::MoeStatistics& layer : *statistics) {
        const model::MoeStatistics& shown = recorder.counted[layer.layer];
        EXPECT_EQ(layer.tokens, 140);
        EXPECT_EQ(layer.tokens_per_expert, shown.tokens_per_expert);
        EXPECT_EQ(layer.lost_slots, shown.lost_slots);
        EXPECT_EQ(layer.rerouted_slots, shown.rerouted_slots);
        EXPECT_EQ(std::accumulate(layer.tokens_per_expert.begin(), layer.tokens_per_expert.end(),
                                  layer.lost_slots),
                  140 * config.moe.experts_per_token);
        EXPECT_GE(layer.Imbalance(), 1);
        lost += layer.lost_slots;
        rerouted += layer.rerouted_slots;
      }
      EXPECT_EQ(lost > 0, factor != 0);
      EXPECT_EQ(rerouted > 0, factor != 0 && overflow == CapacityOverflow::kNext);
      // Counted once: asking does not count again.
      EXPECT_EQ(runner->transformer().ExpertStatistics()->at(0).tokens, 140);
    }
  }
}

TEST_P(MoeForwardTest, OperationsAndKernelsAreNamed) {
  const std::unique_ptr<ForwardRunner> runner = RunnerOf(GetParam());
  ASSERT_NE(runner, nullptr);
  const model::ModelConfig& config = runner->config();
  Recorder recorder(config);
  runner->transformer().set_observer(&recorder);
  LogitsOf(*runner, {{{3, 4, 5}, {}}}, Policy::kPortable, 0);
  runner->transformer().set_observer(nullptr);
  std::vector<std::pair<int64_t, Operation>> expected = {{-1, Operation::kEmbedding}};
  for (int64_t i = 0; i < config.num_layers; ++i) {
    expected.emplace_back(i, Operation::kAttnNorm);
    expected.emplace_back(i, Operation::kQkv);
    if (config.qk_norm != model::QkNorm::kNone) expected.emplace_back(i, Operation::kQkNorm);
    expected.emplace_back(i, Operation::kRope);
    expected.emplace_back(i, Operation::kAttention);
    expected.emplace_back(i, Operation::kAttnOutput);
    expected.emplace_back(i, Operation::kFfnNorm);
    if (config.moe.IsMoe(i)) {
      expected.emplace_back(i, Operation::kRouter);
    } else {
      expected.emplace_back(i, Operation::kGateUp);
      expected.emplace_back(i, Operation::kSwiGlu);
    }
    expected.emplace_back(i, Operation::kDown);
  }
  EXPECT_EQ(recorder.operations, expected);

  const bool has_dense = !config.moe.dense_layers.empty();
  std::vector<std::string> names = {"qkv", "o"};
  if (has_dense) names.insert(names.end(), {"gate_up", "down"});
  names.insert(names.end(), {"router", "experts_gate_up", "experts_down"});
  if (config.moe.shared_intermediate_size > 0) {
    names.insert(names.end(), {"shared_gate_up", "shared_down"});
  }
  for (const Policy policy : {Policy::kPortable, Policy::kThroughput}) {
    std::vector<std::string> found;
    for (const auto& [name, kernel] :
         runner->transformer().GemmKernels({.policy = policy}, 4, /*logits=*/false)) {
      found.push_back(name);
      if (name == "experts_down" && policy == Policy::kThroughput) {
        EXPECT_THAT(kernel, HasSubstr("by tokens of each expert"));
      }
    }
    EXPECT_EQ(found, names);
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, MoeForwardTest,
                         ::testing::Values("hf_mixtral", "hf_qwen2moe", "hf_qwen3moe", "hf_olmoe",
                                           "hf_granitemoe", "hf_granitemoeshared",
                                           "gguf_mixtral_q4_1.gguf", "gguf_qwen2moe_q8_0.gguf"),
                         [](const auto& info) {
                           const std::string name = info.param;
                           return name.substr(0, name.find('.'));
                         });

TEST(MoeForwardErrorTest, BadLimitsAreRefusedByName) {
  for (const double factor : {-0.5, std::nan(""), std::numeric_limits<double>::infinity()}) {
    const absl::Status status = ForwardRunner::CreateLimited(PathOf("hf_mixtral"), kMaxTokens, 1,
                                                             factor, CapacityOverflow::kDrop)
                                    .status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("moe_capacity_factor"));
  }
  const std::unique_ptr<ForwardRunner> runner = RunnerOf("hf_mixtral", 1.0);
  ASSERT_NE(runner, nullptr);
  runner->set_exempt_rows({1, 0});
  const absl::Status status =
      runner->Prefill({{{1, 2, 3}, {2}}}, {.policy = Policy::kPortable}, 0).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("capacity_exempt has 2 entries for 3 rows"));
}

// Rows that are too many for the experts of one step, one expert's share being a single token.
TEST(MoeForwardErrorTest, TheSmallestCapacityIsOneToken) {
  const std::unique_ptr<ForwardRunner> runner = RunnerOf("hf_mixtral", 1e-9);
  ASSERT_NE(runner, nullptr);
  const std::vector<ForwardSequence> prompts = Prompts(runner->config().vocab_size);
  const Logits logits = LogitsOf(*runner, prompts, Policy::kThroughput, 0);
  for (const LogitRow& row : logits.back()) {
    EXPECT_TRUE(std::isfinite(row[0]));
  }
  const auto statistics = runner->transformer().ExpertStatistics();
  ASSERT_TRUE(statistics.ok());
  for (const model::MoeStatistics& layer : *statistics) {
    EXPECT_THAT(layer.tokens_per_expert, Each(::testing::Le(1)));
    EXPECT_GE(layer.lost_slots, 140 * 2 - 4);
  }
}

TEST(MoeForwardErrorTest, DenseModelsHaveNoStatistics) {
  const std::unique_ptr<ForwardRunner> runner = RunnerOf("hf_mistral", 1.0);
  ASSERT_NE(runner, nullptr);
  LogitsOf(*runner, {{{3, 4, 5}, {2}}}, Policy::kPortable, 0);
  const auto statistics = runner->transformer().ExpertStatistics();
  ASSERT_TRUE(statistics.ok());
  EXPECT_TRUE(statistics->empty());
}

}  // namespace
}  // namespace verbatim::testing

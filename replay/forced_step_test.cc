// Tests of the experts that replayed rows are given: the counts are the recorded ones, and weights
// have the bits of the router's own.
#include "replay/forced_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "engine/engine_test_support.h"
#include "kernels/ops/moe.h"

namespace verbatim::replay {
namespace {

using kernels::CapacityOverflow;

// Five rows, the second and third of them own, that have experts 4 and 1, and 4 after a lost 2.
TEST(ForcedRoutingTest, FillersMakeUpTheTokens) {
  const trace::Mixture mixture = {.num_experts = 6, .experts_per_token = 2, .layers = {0}};
  trace::Step step;
  step.spans = {{1, 9}, {3, 0}, {1, 5}};
  step.own = {{.span = 1, .run = 0, .rows = 2}};
  step.routing = {
      {.experts = {4, 1, -1, 4}, .wanted = {{2, 2}}, .tokens = {{1, 1}, {2, 2}, {4, 5}}}};
  const std::vector<OwnRow> own = {{.row = 1}, {.row = 2}};
  const model::ForcedRouting forced = ForcedRoutingOf(mixture, step, own);
  ASSERT_EQ(forced.experts.size(), 1u);
  const std::vector<int32_t>& experts = forced.experts[0];
  ASSERT_EQ(experts.size(), 10u);
  EXPECT_EQ((std::vector<int32_t>(experts.begin() + 2, experts.begin() + 6)),
            (std::vector<int32_t>{4, 1, -1, 4}));
  EXPECT_EQ(std::count(experts.begin(), experts.end(), 1), 1);
  EXPECT_EQ(std::count(experts.begin(), experts.end(), 2), 2);
  EXPECT_EQ(std::count(experts.begin(), experts.end(), 4), 5);
  EXPECT_EQ(std::count(experts.begin(), experts.end(), -1), 1);  // the own one
}

TEST(WeighExpertsTest, HasTheBitsOfMoeRoute) {
  const std::unique_ptr<kernels::Backend> backend = engine::TinyBackend();
  constexpr int64_t kRows = 64;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  for (const int64_t num_experts : {6, 60, 200}) {
    for (const bool normalise : {true, false}) {
      for (const auto overflow : {CapacityOverflow::kDrop, CapacityOverflow::kNext}) {
        const int64_t top_k = num_experts == 6 ? 2 : 7;
        std::vector<float> logits(kRows * num_experts), weights(kRows * top_k);
        std::vector<int32_t> experts(kRows * top_k), wanted(kRows * top_k);
        for (float& logit : logits) logit = normal(random);
        // Every row likes the first experts, so that they are full soon.
        for (int64_t r = 0; r < kRows; ++r) logits[r * num_experts] += 20;
        ASSERT_TRUE(backend
                        ->MoeRoute({.logits = logits.data(),
                                    .tokens = kRows,
                                    .num_experts = num_experts,
                                    .top_k = top_k,
                                    .normalise = normalise,
                                    .scale = 1.5f,
                                    .capacity = kRows * top_k / num_experts / 2,
                                    .overflow = overflow,
                                    .experts = experts.data(),
                                    .wanted = wanted.data(),
                                    .weights = weights.data()})
                        .ok());
        ASSERT_NE(experts, wanted);
        std::vector<float> mine(weights.size());
        for (int64_t r = 0; r < kRows; ++r) {
          model::WeighExperts({num_experts, top_k, normalise, 1.5f},
                              logits.data() + r * num_experts, wanted.data() + r * top_k,
                              experts.data() + r * top_k, mine.data() + r * top_k);
        }
        EXPECT_EQ(std::memcmp(mine.data(), weights.data(), mine.size() * sizeof(float)), 0)
            << num_experts << " experts, normalise " << normalise;
      }
    }
  }
}

// What does not fit the batch is refused by name before anything runs.
TEST(ForcedRoutingTest, IsCheckedByTheForwardPass) {
  const std::unique_ptr<kernels::Backend> backend = engine::TinyBackend();
  const model::Checkpoint& checkpoint = *engine::TinyMoeModel().checkpoint;
  auto cache = *backend->CreateKvCache({.num_layers = checkpoint.config().num_layers,
                                        .num_kv_heads = checkpoint.config().num_kv_heads,
                                        .head_dim = checkpoint.config().head_dim,
                                        .page_tokens = 16,
                                        .num_pages = 1});
  const int32_t page = 0;
  model::ForwardBatch batch;
  batch.tokens = {5, 6};
  batch.positions = {0, 1};
  batch.spans = {{.first_row = 0, .num_rows = 2, .pages = &page, .num_pages = 1}};
  model::ForcedRouting forced;
  batch.forced_routing = &forced;
  const auto run = [&](const model::TransformerOptions& options) {
    auto transformer = *model::Transformer::Load(*backend, checkpoint, options);
    return std::string(transformer->Forward(batch, {}, *cache).message());
  };
  const size_t mixtures = static_cast<size_t>(checkpoint.config().num_layers);
  const auto contains = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(contains(run({}), "forced_routing: 0 layers"));
  forced.experts.assign(mixtures, {0, 1, 2});
  EXPECT_TRUE(contains(run({}), "forced_routing.experts[0]: 3 slots, not 4"));
  forced.experts.assign(mixtures, {0, 1, 2, 6});
  EXPECT_TRUE(contains(run({}), "forced_routing.experts[0]: expert 6 of 6"));
  forced.experts.assign(mixtures, {0, -1, 2, 2});
  EXPECT_EQ(run({}), "");
  EXPECT_TRUE(contains(run({.moe_capacity_factor = 1}), "the experts have a capacity"));
}

}  // namespace
}  // namespace verbatim::replay

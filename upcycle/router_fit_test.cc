// Routers on rows whose clusters are known.
#include "upcycle/router_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/philox.h"

namespace verbatim::upcycle {
namespace {

using kernels::cpu::ThreadPool;

constexpr int64_t kHidden = 37;  // no multiple of anything

float Word(uint32_t stream, int64_t index) {
  return static_cast<float>(
      numerics::PhiloxWord(7, stream, 0, static_cast<uint32_t>(index)) * 0x1p-31 - 1.0);
}

// `rows` around `clusters` directions, on top of a large direction that all share. Row r belongs to
// cluster r % clusters.
std::vector<float> ClusteredRows(int64_t rows, int64_t clusters, float spread) {
  std::vector<float> values(rows * kHidden);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < kHidden; ++i) {
      values[r * kHidden + i] =
          5 * Word(1, i) + 2 * Word(10 + r % clusters, i) + spread * Word(2, r * kHidden + i);
    }
  }
  return values;
}

TEST(FitRouter, FindsTheClusters) {
  ThreadPool pool(2);
  for (const int64_t experts : {2, 3, 5}) {
    const std::vector<float> rows = ClusteredRows(600, experts, 0.5f);
    const auto fit = FitRouter(rows, kHidden, {.num_experts = experts}, pool);
    ASSERT_TRUE(fit.ok()) << fit.status();
    const Routing routing = RouteRows(rows, kHidden, fit->weights, 1, pool);
    std::set<int32_t> used;
    for (int64_t c = 0; c < experts; ++c) used.insert(routing.experts[c]);
    EXPECT_EQ(static_cast<int64_t>(used.size()), experts);
    for (int64_t r = 0; r < 600; ++r) {
      ASSERT_EQ(routing.experts[r], routing.experts[r % experts]) << experts << " row " << r;
    }
    for (const int64_t count : fit->assigned) EXPECT_EQ(count, 600 / experts);
  }
}

TEST(FitRouter, WeightsAreBf16AndAsSharpAsAsked) {
  ThreadPool pool(1);
  const std::vector<float> rows = ClusteredRows(400, 4, 3.0f);
  for (const double share : {0.55, 0.62, 0.8}) {
    const auto fit = FitRouter(rows, kHidden, {.num_experts = 4, .first_share = share}, pool);
    ASSERT_TRUE(fit.ok()) << fit.status();
    for (const float weight : fit->weights) ASSERT_EQ(weight, numerics::RoundToBf16(weight));
    const Routing routing = RouteRows(rows, kHidden, fit->weights, 2, pool);
    double gap = 0;  // mean difference of the two logits
    for (int64_t r = 0; r < 400; ++r) {
      gap += std::log(routing.weights[2 * r] / routing.weights[2 * r + 1]) / 400;
    }
    // Rounding the router's rows moves a logit by some 2^-9 of the row's size.
    EXPECT_NEAR(gap, std::log(share / (1 - share)), 0.05) << share;
  }
}

TEST(FitRouter, IsFairlyBalancedWhereClustersAreNot) {
  ThreadPool pool(2);
  // Without structure, and nine in ten rows near one direction.
  std::vector<float> rows(1000 * kHidden);
  for (int64_t r = 0; r < 1000; ++r) {
    for (int64_t i = 0; i < kHidden; ++i) {
      rows[r * kHidden + i] = (r % 10 == 0 ? 0.0f : Word(3, i)) + Word(4, r * kHidden + i);
    }
  }
  const auto fit = FitRouter(rows, kHidden, {.num_experts = 4}, pool);
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_EQ(std::accumulate(fit->assigned.begin(), fit->assigned.end(), int64_t{0}), 1000);
  for (const int64_t count : fit->assigned) {
    EXPECT_GT(count, 100);
    EXPECT_LT(count, 500);
  }
}

TEST(FitRouter, ThreadsDoNotShowButTheSeedDoes) {
  const std::vector<float> rows = ClusteredRows(500, 8, 4.0f);
  ThreadPool one(1), three(3);
  const RouterFitOptions options{.num_experts = 4, .seed = 5, .layer = 2};
  const auto first = FitRouter(rows, kHidden, options, one);
  const auto second = FitRouter(rows, kHidden, options, three);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->weights, second->weights);
  RouterFitOptions other = options;
  other.seed = 6;
  EXPECT_NE(FitRouter(rows, kHidden, other, one)->weights, first->weights);
  other = options;
  other.layer = 3;
  EXPECT_NE(FitRouter(rows, kHidden, other, one)->weights, first->weights);
}

TEST(FitRouter, RefusesRowsThatCannotBeToldApart) {
  ThreadPool pool(1);
  std::vector<float> equal(20 * kHidden, 0.5f);
  EXPECT_FALSE(FitRouter(equal, kHidden, {.num_experts = 2}, pool).ok());
  const std::vector<float> rows = ClusteredRows(3, 3, 1.0f);
  EXPECT_FALSE(FitRouter(rows, kHidden, {.num_experts = 4}, pool).ok());
  EXPECT_FALSE(FitRouter(rows, kHidden, {.num_experts = 1}, pool).ok());
  EXPECT_FALSE(FitRouter(rows, kHidden, {.num_experts = 2, .first_share = 0.5}, pool).ok());
}

TEST(RouteRows, OrdersByLogitThenIndexAndNormalises) {
  ThreadPool pool(2);
  // Logits of the row {1, 0}: 1, 3, 3, 2.
  const std::vector<float> router = {1, 9, 3, 9, 3, 9, 2, 9}, row = {1, 0};
  const Routing routing = RouteRows(row, 2, router, 3, pool);
  EXPECT_THAT(routing.experts, ::testing::ElementsAre(1, 2, 3));
  const double sum = 2 + std::exp(-1.0);
  EXPECT_NEAR(routing.weights[0], 1 / sum, 1e-14);
  EXPECT_NEAR(routing.weights[1], 1 / sum, 1e-14);
  EXPECT_NEAR(routing.weights[2], std::exp(-1.0) / sum, 1e-14);
}

}  // namespace
}  // namespace verbatim::upcycle

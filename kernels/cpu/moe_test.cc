// Tests of routing, permutation and the weighted sum of a mixture of experts; expert capacity has
// moe_capacity_test.cc.
#include "kernels/cpu/moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary.h"
#include "kernels/numerics/reduction_tree.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kUntouched = -12345.0f;
constexpr double kUnit = 0x1p-24;

std::vector<float> RandomFloats(int64_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> x(count);
  for (float& v : x) v = normal(random);
  return x;
}

testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < a.size(); ++i) {
    if (memcmp(&a[i], &b[i], 4) != 0) {
      return testing::AssertionFailure() << "element " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

std::vector<Isa> IsasOfThisMachine() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= DetectIsa()) isas.push_back(isa);
  }
  return isas;
}

class MoeTest : public testing::TestWithParam<std::tuple<Isa, int>> {
 protected:
  ThreadPool pool_{std::get<1>(GetParam())};
  CpuContext context_{.pool = &pool_, .isa = std::get<0>(GetParam())};
};

INSTANTIATE_TEST_SUITE_P(All, MoeTest,
                         testing::Combine(testing::ValuesIn(IsasOfThisMachine()),
                                          testing::Values(1, 2, 3)),
                         [](const auto& info) {
                           return std::string(NameOf(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param)) + "threads";
                         });

struct Shape {
  int64_t num_experts, top_k;
  bool normalise;
  float scale = 1.0f;
};

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Routing Route(const CpuContext& context, const Shape& shape, const std::vector<float>& logits) {
  const int64_t tokens = static_cast<int64_t>(logits.size()) / shape.num_experts;
  Routing out{std::vector<int32_t>(tokens * shape.top_k, -7),
              std::vector<float>(tokens * shape.top_k, kUntouched)};
  std::vector<int32_t> wanted(tokens * shape.top_k, -7);
  MoeRouteParams params;
  params.logits = logits.data();
  params.tokens = tokens;
  params.num_experts = shape.num_experts;
  params.top_k = shape.top_k;
  params.normalise = shape.normalise;
  params.scale = shape.scale;
  params.experts = out.experts.data();
  params.wanted = wanted.data();
  params.weights = out.weights.data();
  const absl::Status status = MoeRoute(context, params);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(wanted, out.experts);
  return out;
}

// The experts of one row, by sorting; NaN last, ties to the lower index.
std::vector<int32_t> Order(const float* logits, int64_t num_experts) {
  std::vector<int32_t> order(num_experts);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (std::isnan(logits[a]) || std::isnan(logits[b])) {
      return !std::isnan(logits[a]) && std::isnan(logits[b]);
    }
    return logits[a] > logits[b];
  });
  return order;
}

TEST_P(MoeTest, RouteHasReferenceBitsAndIsCloseToDouble) {
  const Shape shapes[] = {{1, 1, true},          {2, 1, false},       {8, 2, true},
                          {8, 2, false, 2.5f},   {8, 8, true},        {60, 4, false},
                          {64, 8, false, 0.5f},  {128, 8, true},      {33, 3, false},
                          {257, 5, false},       {1000, 17, true},    {1024, 64, false},
                          {40, 40, false, 3.0f}, {64, 64, true, 0.7f}};
  uint32_t seed = 10;
  for (const Shape& shape : shapes) {
    const int64_t experts = shape.num_experts, top_k = shape.top_k;
    for (int64_t tokens : {1, 3, 700}) {
      const std::vector<float> logits = RandomFloats(tokens * experts, ++seed, 4.0f);
      const Routing routing = Route(context_, shape, logits);
      Routing expected;
      for (int64_t t = 0; t < tokens; ++t) {
        const float* row = &logits[t * experts];
        const std::vector<int32_t> order = Order(row, experts);
        std::vector<float> e(experts);
        std::vector<double> exact(experts);
        for (int64_t i = 0; i < experts; ++i) {
          e[i] = numerics::ExpF(row[i] - row[order[0]]);
          exact[i] = std::exp(static_cast<double>(row[i]) - row[order[0]]);
        }
        float sum = 0.0f;
        double exact_sum = 0.0;
        for (int64_t r = 0; r < top_k; ++r) {
          sum += e[order[r]];
          exact_sum += exact[order[r]];
        }
        if (!shape.normalise) {
          sum = numerics::RowSum(e.data(), experts);
          exact_sum = std::accumulate(exact.begin(), exact.end(), 0.0);
        }
        for (int64_t r = 0; r < top_k; ++r) {
          expected.experts.push_back(order[r]);
          expected.weights.push_back(shape.scale * (e[order[r]] / sum));
          // The argument's rounding grows with its size; exp is within 0.7 units of its last
          // place; a sum of positive terms; a division and a product.
          const double exact_weight = shape.scale * exact[order[r]] / exact_sum;
          const double spread = static_cast<double>(row[order[0]]) - row[order.back()];
          ASSERT_NEAR(
              routing.weights[t * top_k + r], exact_weight,
              (2 * spread + 2 * 1.4 + static_cast<double>(experts) + 3) * kUnit * exact_weight);
        }
      }
      ASSERT_EQ(routing.experts, expected.experts) << experts << " experts, top " << top_k;
      ASSERT_TRUE(SameBits(routing.weights, expected.weights))
          << experts << " experts, top " << top_k;
    }
  }
}

TEST_P(MoeTest, ARowRoutedAloneEqualsThatRowInABatch) {
  for (const Shape& shape : {Shape{8, 2, true}, Shape{60, 4, false}, Shape{128, 8, true}}) {
    const int64_t tokens = 1500;
    const std::vector<float> logits = RandomFloats(tokens * shape.num_experts, 3);
    const Routing together = Route(context_, shape, logits);
    for (int64_t t = 0; t < tokens; t += 7) {
      const Routing alone = Route(
          context_, shape,
          {logits.begin() + t * shape.num_experts, logits.begin() + (t + 1) * shape.num_experts});
      const int64_t at = t * shape.top_k;
      ASSERT_TRUE(std::equal(alone.experts.begin(), alone.experts.end(), &together.experts[at]));
      ASSERT_EQ(memcmp(alone.weights.data(), &together.weights[at], shape.top_k * 4), 0);
    }
  }
}

TEST_P(MoeTest, TiesGoToTheLowerIndexAndZerosAreEqual) {
  const Shape shape{6, 3, true};
  const Routing routing = Route(context_, shape,
                                {1, 2, 2, 0, 2, 1,              //
                                 -0.0f, 0.0f, -0.0f, 0, -1, 0,  //
                                 -3, -2, -1, -1e-45f, 1e-45f, -0.0f});
  EXPECT_EQ(routing.experts, (std::vector<int32_t>{1, 2, 4, 0, 1, 2, 4, 5, 3}));
  const float third = 1.0f / 3.0f;
  for (int i = 0; i < 9; ++i) EXPECT_EQ(routing.weights[i], third) << i;
}

TEST_P(MoeTest, NanAndInfinityPoisonTheirOwnRow) {
  for (const bool normalise : {true, false}) {
    const Shape shape{40, 2, normalise};
    const int64_t tokens = 900;
    const std::vector<float> clean = RandomFloats(tokens * 40, 4);
    const Routing expected = Route(context_, shape, clean);
    std::vector<float> logits = clean;
    const auto row = [&](int64_t t) { return logits.begin() + t * 40; };
    row(5)[0] = kNan;                     // below everything
    std::fill(row(6), row(7), kNan);      // nothing but
    std::fill(row(7) + 1, row(8), kNan);  // one expert left, two wanted
    row(9)[17] = kInf;                    // inf - inf
    row(10)[3] = -kInf;                   // an expert that cannot be
    std::fill(row(11), row(12), -kInf);   // none can
    row(12)[20] = -kNan;                  // the sign does not matter
    const Routing routing = Route(context_, shape, logits);
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t* experts = &routing.experts[t * 2];
      const float* weights = &routing.weights[t * 2];
      ASSERT_TRUE(experts[0] >= 0 && experts[0] < 40 && experts[1] >= 0 && experts[1] < 40);
      ASSERT_NE(experts[0], experts[1]);
      if (t < 5 || t == 8 || t > 12) {
        ASSERT_EQ(memcmp(experts, &expected.experts[t * 2], 8), 0) << t;
        ASSERT_EQ(memcmp(weights, &expected.weights[t * 2], 8), 0) << t;
      }
      if (t == 5 || t == 12) {
        EXPECT_NE(experts[0], t == 5 ? 0 : 20);
        EXPECT_NE(experts[1], t == 5 ? 0 : 20);
        EXPECT_EQ(std::isnan(weights[0]), !normalise) << t;  // the sum over all has it
      }
      if (t == 6) {
        EXPECT_EQ(experts[0], 0);
        EXPECT_EQ(experts[1], 1);
      }
      if (t == 7) {
        EXPECT_EQ(experts[0], 0);
        EXPECT_EQ(experts[1], 1);
      }
      if (t == 9) {
        EXPECT_EQ(experts[0], 17);
      }
      if (t == 6 || t == 7 || t == 9 || t == 11) {
        EXPECT_TRUE(std::isnan(weights[0])) << t;
      }
      if (t == 10) {
        EXPECT_FALSE(std::isnan(weights[0]) || std::isnan(weights[1]));
      }
    }
  }
}

TEST_P(MoeTest, PermuteSortsByExpertThenToken) {
  std::mt19937 random(5);
  for (const auto& [tokens, num_experts, top_k] : {std::tuple<int64_t, int64_t, int64_t>{0, 4, 2},
                                                   {1, 1, 1},
                                                   {7, 8, 2},
                                                   {200, 60, 4},
                                                   {90, 3, 3},
                                                   {50, 1024, 64}}) {
    std::vector<int32_t> experts(tokens * top_k);
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<int32_t> all(num_experts);
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), random);
      for (int64_t r = 0; r < top_k; ++r) {
        experts[t * top_k + r] = random() % 5 == 0 ? -1 : all[r];
      }
    }
    std::vector<int32_t> offsets(num_experts + 1, -7), token_of(tokens * top_k, -7);
    std::vector<int32_t> place_of(tokens * top_k, -7), wanted = experts;
    std::vector<int64_t> totals(num_experts + 2, 10), counted = totals;
    for (size_t i = 0; i < wanted.size(); i += 3) wanted[i] = (wanted[i] + 2) % 5;
    const MoeStepLimits limits = {.tokens = static_cast<int32_t>(tokens / 2)};
    MoePermuteParams params = {.experts = experts.data(),
                               .tokens = tokens,
                               .num_experts = num_experts,
                               .top_k = top_k,
                               .offsets = offsets.data(),
                               .token_of = token_of.data(),
                               .place_of = place_of.data(),
                               .totals = totals.data()};
    ASSERT_TRUE(MoePermute(context_, params).ok());
    params.wanted = wanted.data();
    params.limits = &limits;
    ASSERT_TRUE(MoePermute(context_, params).ok());
    for (int64_t slot = 0; slot < tokens * top_k; ++slot) {
      const int64_t expert = experts[slot] < 0 ? num_experts : experts[slot];
      const bool twice = slot < tokens / 2 * top_k;
      counted[expert] += twice ? 2 : 1;
      if (twice && experts[slot] >= 0 && wanted[slot] != experts[slot]) ++counted[num_experts + 1];
    }
    EXPECT_EQ(totals, counted);
    int32_t place = 0;
    for (int32_t e = 0; e < num_experts; ++e) {
      EXPECT_EQ(offsets[e], place);
      for (int64_t slot = 0; slot < tokens * top_k; ++slot) {
        if (experts[slot] != e) continue;
        EXPECT_EQ(token_of[place], slot / top_k);
        EXPECT_EQ(place_of[slot], place);
        ++place;
      }
    }
    EXPECT_EQ(offsets[num_experts], place);
    for (int64_t p = place; p < tokens * top_k; ++p) EXPECT_EQ(token_of[p], 0);
    for (int64_t slot = 0; slot < tokens * top_k; ++slot) {
      if (experts[slot] < 0) {
        EXPECT_EQ(place_of[slot], -1);
      }
    }
  }
}

// Slots in a random order of places, some of them lost; rows that nobody reads are NaN.
struct CombineCase {
  int64_t tokens, top_k, cols;
  std::vector<float> rows, weights, shared, gate, residual;
  std::vector<int32_t> place_of;

  CombineCase(int64_t tokens, int64_t top_k, int64_t cols, uint32_t seed)
      : tokens(tokens), top_k(top_k), cols(cols) {
    std::mt19937 random(seed);
    rows = RandomFloats(tokens * top_k * cols, seed);
    weights = RandomFloats(tokens * top_k, seed + 1);
    shared = RandomFloats(tokens * cols, seed + 2);
    gate = RandomFloats(tokens, seed + 3, 3.0f);
    residual = RandomFloats(tokens * cols, seed + 4);
    place_of.resize(tokens * top_k);
    std::iota(place_of.begin(), place_of.end(), 0);
    std::shuffle(place_of.begin(), place_of.end(), random);
    for (size_t slot = 0; slot < place_of.size(); ++slot) {
      if (random() % 4 != 0) continue;
      std::fill_n(rows.begin() + place_of[slot] * cols, cols, kNan);
      weights[slot] = 0.0f;
      place_of[slot] = -1;
    }
  }
  MoeCombineParams Params(int sharing, float* y) const {
    return {.expert_rows = rows.data(),
            .place_of = place_of.data(),
            .weights = weights.data(),
            .tokens = tokens,
            .top_k = top_k,
            .cols = cols,
            .shared = sharing > 0 ? shared.data() : nullptr,
            .shared_gate = sharing > 1 ? gate.data() : nullptr,
            .residual = residual.data(),
            .y = y};
  }
  float At(int sharing, int64_t t, int64_t c, double* exact, double* magnitude) const {
    float a = 0.0f;
    *exact = residual[t * cols + c];
    *magnitude = std::abs(*exact);
    const auto add = [&](float w, double exact_w, float d) {
      a = std::fma(w, d, a);
      *exact += exact_w * d;
      *magnitude += std::abs(exact_w * d);
    };
    for (int64_t r = 0; r < top_k; ++r) {
      const int32_t place = place_of[t * top_k + r];
      if (place >= 0) add(weights[t * top_k + r], weights[t * top_k + r], rows[place * cols + c]);
    }
    const double exact_gate = 1.0 / (1.0 + std::exp(-static_cast<double>(gate[t])));
    if (sharing == 1) add(1.0f, 1.0, shared[t * cols + c]);
    if (sharing == 2) add(numerics::SigmoidF(gate[t]), exact_gate, shared[t * cols + c]);
    return residual[t * cols + c] + a;
  }
};

TEST_P(MoeTest, CombineHasReferenceBitsAndIsCloseToDouble) {
  uint32_t seed = 20;
  for (int64_t cols : {1, 15, 64, 130, 576}) {
    for (int64_t top_k : {1, 2, 8, 64}) {
      const CombineCase c(cols == 576 ? 70 : 4, top_k, cols, seed += 10);
      for (int sharing : {0, 1, 2}) {
        std::vector<float> y(c.tokens * cols, kUntouched), expected(y), rounded(y);
        for (int64_t t = 0; t < c.tokens; ++t) {
          for (int64_t i = 0; i < cols; ++i) {
            double exact = 0, magnitude = 0;
            expected[t * cols + i] = c.At(sharing, t, i, &exact, &magnitude);
            rounded[t * cols + i] = numerics::RoundToBf16(expected[t * cols + i]);
            // One rounding a term and one for the residual; a gate within 2.5 units.
            ASSERT_NEAR(expected[t * cols + i], exact, (top_k + 2 + 5) * kUnit * magnitude);
          }
        }
        MoeCombineParams params = c.Params(sharing, y.data());
        ASSERT_TRUE(MoeCombine(context_, params).ok());
        ASSERT_TRUE(SameBits(y, expected)) << cols << " columns, top " << top_k;
        params.round_output = true;
        ASSERT_TRUE(MoeCombine(context_, params).ok());
        ASSERT_TRUE(SameBits(y, rounded)) << cols << " columns, top " << top_k;
        std::vector<float> in_place = c.residual;
        params = c.Params(sharing, in_place.data());
        params.residual = in_place.data();
        ASSERT_TRUE(MoeCombine(context_, params).ok());
        ASSERT_TRUE(SameBits(in_place, expected)) << cols << " columns, top " << top_k;
      }
    }
  }
}

TEST_P(MoeTest, ANanWeightPoisonsItsOwnRow) {
  CombineCase c(80, 2, 600, 77);
  std::fill(c.place_of.begin() + 2 * 33, c.place_of.begin() + 2 * 34, 0);
  std::fill_n(c.rows.begin(), 600, 1.0f);
  c.weights[2 * 33] = kNan;
  std::vector<float> y(80 * 600);
  ASSERT_TRUE(MoeCombine(context_, c.Params(2, y.data())).ok());
  for (int64_t i = 0; i < 80 * 600; ++i) ASSERT_EQ(std::isnan(y[i]), i / 600 == 33) << i;
}

void ExpectRefused(const absl::Status& status, const std::string& what) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << what;
  EXPECT_NE(std::string(status.message()).find(what), std::string::npos) << status << what;
}

TEST(MoeRefusalTest, NamesTheParameter) {
  ThreadPool pool(1);
  const CpuContext context{&pool, Isa::kScalar};
  std::vector<float> floats(64, 1.0f);
  std::vector<int32_t> ints(64, 0);
  MoeRouteParams good;
  good.logits = floats.data();
  good.tokens = 2;
  good.num_experts = 4;
  good.top_k = 2;
  good.experts = ints.data();
  good.weights = floats.data() + 32;
  ASSERT_TRUE(MoeRoute(context, good).ok());
  const auto route = [&](auto change) {
    MoeRouteParams params = good;
    change(params);
    return MoeRoute(context, params);
  };
  ExpectRefused(route([](auto& p) { p.tokens = -1; }), "tokens is -1");
  ExpectRefused(route([](auto& p) { p.num_experts = 0; }), "num_experts 0");
  ExpectRefused(route([](auto& p) { p.num_experts = kMaxExperts + 1; }), "num_experts 1025");
  ExpectRefused(route([](auto& p) { p.top_k = 5; }), "top_k 5 is not from 1 to 4");
  ExpectRefused(route([](auto& p) { p.top_k = 0; }), "top_k 0");
  ExpectRefused(route([](auto& p) { p.num_experts = 100, p.top_k = 65; }), "top_k 65");
  ExpectRefused(route([](auto& p) { p.capacity = -3; }), "capacity is -3");
  ExpectRefused(route([](auto& p) { p.logits = nullptr; }), "logits");
  ExpectRefused(route([](auto& p) { p.tokens = int64_t{1} << 31; }), "too large");
  EXPECT_TRUE(route([](auto& p) { p.tokens = 0, p.logits = nullptr; }).ok());

  std::vector<int32_t> experts = {0, 3, -1, 1}, offsets(5), token_of(4), place_of(4);
  MoePermuteParams permute{experts.data(), 2, 4, 2, offsets.data(), token_of.data(),
                           place_of.data()};
  ASSERT_TRUE(MoePermute(context, permute).ok());
  for (const int32_t bad : {4, -2}) {
    experts[3] = bad;
    ExpectRefused(MoePermute(context, permute), "experts[1, 1] is " + std::to_string(bad));
  }
  permute.offsets = nullptr;
  ExpectRefused(MoePermute(context, permute), "offsets");

  std::vector<int32_t> places = {0, 1, -1, 3};
  MoeCombineParams combine{.expert_rows = floats.data(),
                           .place_of = places.data(),
                           .weights = floats.data(),
                           .tokens = 2,
                           .top_k = 2,
                           .cols = 8,
                           .residual = floats.data(),
                           .y = floats.data() + 32};
  ASSERT_TRUE(MoeCombine(context, combine).ok());
  places[2] = 4;
  ExpectRefused(MoeCombine(context, combine), "place_of[1, 0] is 4 of 4 places");
  places[2] = -2;
  ExpectRefused(MoeCombine(context, combine), "place_of[1, 0] is -2");
  places[2] = 2;
  combine.shared_gate = floats.data();
  ExpectRefused(MoeCombine(context, combine), "shared_gate");
  combine.shared_gate = nullptr;
  combine.residual = nullptr;
  ExpectRefused(MoeCombine(context, combine), "residual");
  combine.cols = 0;
  ExpectRefused(MoeCombine(context, combine), "cols is 0");
}

}  // namespace
}  // namespace verbatim::kernels::cpu

// Routing, ordering and adding up of experts: the device's bits are the CPU's.
#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/backend_pair_test.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class MoeTest : public BackendPairTest {
 protected:
  struct Routing {
    std::vector<float> logits;
    int64_t num_experts = 1, top_k = 1;
    bool normalise = true;
    float scale = 1.0f;
    int64_t capacity = 0;
    CapacityOverflow overflow = CapacityOverflow::kDrop;
    std::vector<uint8_t> exempt;
    bool wanted = true;
    std::vector<MoeStepLimits> limits = {};  // one or none

    int64_t tokens() const { return static_cast<int64_t>(logits.size()) / num_experts; }
  };
  // Experts, then those wanted where asked for, then weights.
  static std::vector<float> Route(Backend& backend, const Routing& r) {
    Arrays arrays(backend);
    const size_t slots = static_cast<size_t>(r.tokens() * r.top_k);
    int32_t* experts = arrays.Put(std::vector<int32_t>(slots, -7));
    int32_t* wanted = arrays.Put(std::vector<int32_t>(slots, -7));
    float* weights = arrays.Poisoned(slots);
    const absl::Status status =
        backend.MoeRoute({.logits = arrays.Put(r.logits),
                          .tokens = r.tokens(),
                          .num_experts = r.num_experts,
                          .top_k = r.top_k,
                          .normalise = r.normalise,
                          .scale = r.scale,
                          .capacity = r.capacity,
                          .overflow = r.overflow,
                          .exempt = r.exempt.empty() ? nullptr : arrays.Put(r.exempt),
                          .limits = r.limits.empty() ? nullptr : arrays.Put(r.limits),
                          .experts = experts,
                          .wanted = r.wanted ? wanted : nullptr,
                          .weights = weights});
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> all;
    for (int32_t e : arrays.Get(experts, slots)) all.push_back(static_cast<float>(e));
    for (int32_t e : arrays.Get(wanted, slots)) all.push_back(static_cast<float>(e));
    for (float w : arrays.Get(weights, slots)) all.push_back(w);
    return all;
  }

  // Experts [tokens, top_k], all different in a row; about a tenth of the slots lost.
  static std::vector<int32_t> RandomExperts(int64_t tokens, int64_t num_experts, int64_t top_k,
                                            uint32_t seed) {
    std::mt19937 rng(seed);
    std::vector<int32_t> order(num_experts), experts;
    std::iota(order.begin(), order.end(), 0);
    for (int64_t t = 0; t < tokens; ++t) {
      std::shuffle(order.begin(), order.end(), rng);
      for (int64_t r = 0; r < top_k; ++r) experts.push_back(rng() % 10 == 0 ? -1 : order[r]);
    }
    return experts;
  }
  static std::vector<float> Permute(Backend& backend, const std::vector<int32_t>& experts,
                                    int64_t num_experts, int64_t top_k) {
    Arrays arrays(backend);
    int32_t* offsets = arrays.Put(std::vector<int32_t>(num_experts + 1, -7));
    int32_t* token_of = arrays.Put(std::vector<int32_t>(experts.size(), -7));
    int32_t* place_of = arrays.Put(std::vector<int32_t>(experts.size(), -7));
    const int32_t tokens = static_cast<int32_t>(static_cast<int64_t>(experts.size()) / top_k);
    // Every third slot wanted another expert; counters have counted before.
    std::vector<int32_t> wanted = experts;
    for (size_t i = 0; i < wanted.size(); i += 3) wanted[i] = (wanted[i] + 1) % 3;
    int64_t* totals = arrays.Put(std::vector<int64_t>(num_experts + 2, int64_t{1} << 32));
    // First with rows behind the first half that do not count, then with all.
    MoePermuteParams params = {
        .experts = arrays.Put(experts),
        .tokens = tokens,
        .num_experts = num_experts,
        .top_k = top_k,
        .offsets = offsets,
        .token_of = token_of,
        .place_of = place_of,
        .totals = totals,
        .wanted = arrays.Put(wanted),
        .limits = arrays.Put(std::vector<MoeStepLimits>{{.tokens = (tokens + 1) / 2}})};
    absl::Status status = backend.MoePermute(params);
    params.wanted = nullptr;
    params.limits = nullptr;
    status.Update(backend.MoePermute(params));
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> all;
    for (int64_t v : arrays.Get(totals, num_experts + 2)) {
      all.push_back(static_cast<float>(v - (int64_t{1} << 32)));
    }
    for (int32_t v : arrays.Get(offsets, num_experts + 1)) all.push_back(static_cast<float>(v));
    for (int32_t v : arrays.Get(token_of, experts.size())) all.push_back(static_cast<float>(v));
    for (int32_t v : arrays.Get(place_of, experts.size())) all.push_back(static_cast<float>(v));
    return all;
  }
};

TEST_F(MoeTest, RoutesToEveryNumberOfExperts) {
  const struct {
    int64_t experts, top_k;
  } shapes[] = {{1, 1}, {8, 2}, {31, 5}, {33, 33}, {60, 4}, {128, 8}, {300, 40}, {1024, 64}};
  for (const auto& shape : shapes) {
    for (int64_t tokens : {1, 5}) {
      for (bool normalise : {true, false}) {
        SCOPED_TRACE(absl::StrCat(shape.top_k, " of ", shape.experts, " experts, ", tokens,
                                  " tokens", normalise ? "" : ", over all"));
        const Routing routing{.logits = RandomFloats(tokens * shape.experts, 51, 3.0f),
                              .num_experts = shape.experts,
                              .top_k = shape.top_k,
                              .normalise = normalise,
                              .scale = normalise ? 1.0f : 2.5f};
        ExpectSameBits([&](Backend& backend) { return Route(backend, routing); });
      }
    }
  }
}

TEST_F(MoeTest, OrdersEqualLogitsInfinitiesAndNan) {
  constexpr float kNan = __builtin_nanf(""), kInf = INFINITY;
  const std::vector<std::vector<float>> rows = {
      {0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f},       {1.0f, 2.0f, 2.0f, 1.0f, 2.0f, 1.0f},
      {kNan, -kInf, 3.0f, kNan, -kInf, -kNan},       {kNan, kNan, kNan, kNan, kNan, kNan},
      {-kInf, -kInf, -kInf, -kInf, -kInf, -kInf},    {kInf, 1.0f, kInf, -kInf, kNan, 0.0f},
      {1e-45f, -1e-45f, 0.0f, -0.0f, 3e38f, -3e38f},
  };
  Routing routing{.num_experts = 6, .top_k = 4};
  for (const auto& row : rows) {
    routing.logits.insert(routing.logits.end(), row.begin(), row.end());
  }
  for (bool normalise : {true, false}) {
    for (int64_t capacity : {0, 3}) {
      for (CapacityOverflow overflow : {CapacityOverflow::kDrop, CapacityOverflow::kNext}) {
        routing.normalise = normalise;
        routing.capacity = capacity;
        routing.overflow = overflow;
        ExpectSameBits([&](Backend& backend) { return Route(backend, routing); });
      }
    }
  }
}

// Half of the rows want the same experts, so that places run out in the middle of a warp's rows.
TEST_F(MoeTest, HandsOutLimitedPlacesInOrder) {
  for (int64_t experts : {2, 8, 70}) {
    if (test_device::Slow() && experts > 8) continue;
    const int64_t tokens = 75, top_k = experts == 2 ? 2 : 4;
    std::vector<float> logits = RandomFloats(tokens * experts, 52);
    for (int64_t t = 0; t < tokens; t += 2) {
      for (int64_t e = 0; e < std::min<int64_t>(experts, 5); ++e) {
        logits[t * experts + e] += 6.0f - static_cast<float>(e);
      }
    }
    std::vector<uint8_t> exempt(tokens);
    for (int64_t t = 0; t < tokens; ++t) exempt[t] = t % 7 == 3 || (t > 40 && t < 50) ? 200 : 0;
    for (int64_t capacity : {1, 3, 20, 36, 75}) {
      for (CapacityOverflow overflow : {CapacityOverflow::kDrop, CapacityOverflow::kNext}) {
        for (int variant : {static_cast<int>(capacity % 2), capacity > 20 ? 2 : 3}) {
          SCOPED_TRACE(absl::StrCat(experts, " experts, capacity ", capacity, ", overflow ",
                                    static_cast<int>(overflow), ", variant ", variant));
          const Routing routing{.logits = logits,
                                .num_experts = experts,
                                .top_k = top_k,
                                .normalise = variant % 2 == 0,
                                .capacity = capacity,
                                .overflow = overflow,
                                .exempt = variant < 2 ? exempt : std::vector<uint8_t>{},
                                .wanted = variant != 3};
          ExpectSameBits([&](Backend& backend) { return Route(backend, routing); });
        }
      }
    }
  }
}

TEST_F(MoeTest, LimitsComeFromMemory) {
  for (const int32_t tokens : {0, 5, 37}) {
    for (const int64_t capacity : {0, 1}) {  // the parameter says whether, the memory how much
      for (const auto overflow : {CapacityOverflow::kDrop, CapacityOverflow::kNext}) {
        SCOPED_TRACE(absl::StrCat(tokens, " of 40 tokens, capacity ", capacity));
        const Routing routing{.logits = RandomFloats(40 * 6, 57, 2.0f),
                              .num_experts = 6,
                              .top_k = 3,
                              .capacity = capacity,
                              .overflow = overflow,
                              .limits = {{.tokens = tokens, .capacity = 9}}};
        ExpectSameBits([&](Backend& backend) { return Route(backend, routing); });
      }
    }
  }
}

TEST_F(MoeTest, AFullExpertsTokenLosesItsSlotOrTakesTheNext) {
  // Everyone wants expert 0, then 1; the last row is exempt.
  Routing routing{.num_experts = 3, .top_k = 1, .capacity = 1, .exempt = {0, 0, 0, 0, 1}};
  for (int t = 0; t < 5; ++t) {
    routing.logits.insert(routing.logits.end(), {2.0f, 1.0f, -1.0f});
  }
  for (int s = 0; s < test_device::Schedules(); ++s) {
    test_device::UseSchedule(s);
    routing.overflow = CapacityOverflow::kDrop;
    EXPECT_THAT(Route(*cuda_, routing),
                ElementsAre(0, -1, -1, -1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1));
    routing.overflow = CapacityOverflow::kNext;
    EXPECT_THAT(Route(*cuda_, routing), ElementsAre(0, 1, 2, -1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1));
  }
}

TEST_F(MoeTest, OrdersSlotsByExpertThenToken) {
  const struct {
    int64_t tokens, experts, top_k;
  } shapes[] = {{0, 4, 2}, {1, 1, 1}, {1, 8, 2}, {3, 40, 7}, {130, 8, 2}, {70, 9, 9}};
  for (const auto& shape : shapes) {
    SCOPED_TRACE(absl::StrCat(shape.tokens, " tokens, ", shape.top_k, " of ", shape.experts));
    const std::vector<int32_t> experts =
        RandomExperts(shape.tokens, shape.experts, shape.top_k, 53);
    ExpectSameBits(
        [&](Backend& backend) { return Permute(backend, experts, shape.experts, shape.top_k); });
  }
}

TEST_F(MoeTest, OrdersSlotsOfOneExpertAndOfNone) {
  for (int32_t expert : {-1, 0, 3}) {
    const std::vector<int32_t> experts(300, expert);
    ExpectSameBits([&](Backend& backend) { return Permute(backend, experts, 4, 1); });
  }
}

TEST_F(MoeTest, AddsUpExpertsInRankOrder) {
  for (int64_t cols : {1, 33, 300}) {
    for (int variant = 0; variant < 6; ++variant) {
      SCOPED_TRACE(absl::StrCat(cols, " columns, variant ", variant));
      const int64_t tokens = 5, top_k = 4, slots = tokens * top_k;
      std::vector<int32_t> place_of(slots);
      std::iota(place_of.rbegin(), place_of.rend(), 0);
      for (int64_t t = 0; t < tokens; ++t) place_of[t * top_k + t % top_k] = -1;
      for (int64_t r = 0; r < top_k; ++r) place_of[2 * top_k + r] = -1;  // nothing left
      std::vector<float> weights = RandomFloats(slots, 55);
      weights[0] = INFINITY;  // of a lost slot: nobody looks at it
      std::vector<float> rows = RandomFloats(slots * cols, 54);
      rows[place_of[3 * top_k] * cols] = std::nanf("");
      const bool round = variant == 5;
      ExpectSameBits([&](Backend& backend) {
        Arrays arrays(backend);
        float* y = variant == 4 ? arrays.Put(RandomFloats(tokens * cols, 57))
                                : arrays.Poisoned(tokens * cols);
        NumericMode mode;
        if (round) mode = {Policy::kThroughput, ActivationType::kBF16};
        const absl::Status status = backend.MoeCombine(
            {.mode = mode,
             .expert_rows = arrays.Put(rows),
             .place_of = arrays.Put(place_of),
             .weights = arrays.Put(weights),
             .tokens = tokens,
             .top_k = top_k,
             .cols = cols,
             .shared = variant > 0 ? arrays.Put(RandomFloats(tokens * cols, 56)) : nullptr,
             .shared_gate = variant > 1 ? arrays.Put(RandomFloats(tokens, 58, 4.0f)) : nullptr,
             .residual = variant == 4 ? y : arrays.Put(RandomFloats(tokens * cols, 57)),
             .y = y,
             .round_output = round});
        EXPECT_TRUE(status.ok()) << status;
        return arrays.Get(y, tokens * cols);
      });
    }
  }
}

// A row's experts, weights and sum do not depend on its neighbours, nor on its place.
TEST_F(MoeTest, ARowRoutesAloneAsAmongOthers) {
  const int64_t experts = 40, top_k = 6, tokens = 9;
  const std::vector<float> logits = RandomFloats(tokens * experts, 59);
  const std::vector<float> together =
      Route(*cuda_, {.logits = logits, .num_experts = experts, .top_k = top_k});
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<float> alone =
        Route(*cuda_, {.logits = {logits.begin() + t * experts, logits.begin() + (t + 1) * experts},
                       .num_experts = experts,
                       .top_k = top_k});
    for (int64_t part = 0; part < 3; ++part) {
      const auto row = together.begin() + (part * tokens + t) * top_k;
      EXPECT_TRUE(SameBits({alone.begin() + part * top_k, alone.begin() + (part + 1) * top_k},
                           {row, row + top_k}));
    }
  }
}

TEST_F(MoeTest, ValuesThatOnlyKernelsSeeAreReportedOnce) {
  for (int32_t bad : {-2, 4}) {
    Arrays arrays(*cuda_);
    int32_t* out = arrays.Put(std::vector<int32_t>(3 * 4 + 5));
    ASSERT_TRUE(cuda_
                    ->MoePermute({.experts = arrays.Put(std::vector<int32_t>{0, 3, bad, -1}),
                                  .tokens = 2,
                                  .num_experts = 4,
                                  .top_k = 2,
                                  .offsets = out,
                                  .token_of = out + 5,
                                  .place_of = out + 9})
                    .ok());
    const absl::Status status = cuda_->Synchronize();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("MoePermute: an expert is out of range"));
    EXPECT_TRUE(cuda_->Synchronize().ok());
    // The slot counts as lost.
    EXPECT_THAT(arrays.Get(out, 13), ElementsAre(0, 1, 1, 1, 2, 0, 0, 0, 0, 0, 1, -1, -1));

    float* y = arrays.Poisoned(2 * 8);
    ASSERT_TRUE(cuda_
                    ->MoeCombine({.expert_rows = arrays.Put(std::vector<float>(4 * 8, 1.0f)),
                                  .place_of = arrays.Put(std::vector<int32_t>{0, bad, 1, 2}),
                                  .weights = arrays.Put(std::vector<float>(4, 0.5f)),
                                  .tokens = 2,
                                  .top_k = 2,
                                  .cols = 8,
                                  .residual = arrays.Put(std::vector<float>(16, 1.0f)),
                                  .y = y})
                    .ok());
    EXPECT_THAT(std::string(cuda_->Synchronize().message()), HasSubstr("MoeCombine"));
    EXPECT_EQ(arrays.Get(y, 16)[8], 2.0f);  // the other row
  }
}

TEST_F(MoeTest, ShapesThatContradictEachOtherAreRefused) {
  float x = 0;
  int32_t i = 0;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const MoeRouteParams route{
      .logits = &x, .tokens = 1, .num_experts = 1, .top_k = 1, .experts = &i, .weights = &x};
  const auto route_with = [&](auto change) {
    MoeRouteParams changed = route;
    change(changed);
    return std::string(cuda_->MoeRoute(changed).message());
  };
  EXPECT_THAT(route_with([](MoeRouteParams& p) { p.top_k = 2; }), HasSubstr("top_k 2"));
  EXPECT_THAT(route_with([](MoeRouteParams& p) { p.top_k = 0; }), HasSubstr("top_k 0"));
  EXPECT_THAT(route_with([](MoeRouteParams& p) { p.num_experts = 0; }), HasSubstr("num_experts 0"));
  EXPECT_THAT(route_with([](MoeRouteParams& p) { p.num_experts = 1025; }),
              HasSubstr("num_experts 1025"));
  EXPECT_THAT(route_with([](MoeRouteParams& p) { p.tokens = -1; }), HasSubstr("tokens -1"));
  EXPECT_THAT(route_with([](MoeRouteParams& p) { p.capacity = -1; }), HasSubstr("capacity is -1"));
  EXPECT_THAT(route_with([](MoeRouteParams& p) { p.logits = nullptr; }), HasSubstr("is missing"));
  EXPECT_EQ(cuda_->MoePermute({.tokens = 1, .num_experts = 1, .top_k = 1}).code(), kInvalid);
  EXPECT_EQ(cuda_->MoePermute({.tokens = 1, .num_experts = 1, .top_k = 1, .offsets = &i}).code(),
            kInvalid);
  EXPECT_EQ(cuda_->MoeCombine({.tokens = 1, .top_k = 1, .cols = 1}).code(), kInvalid);
  EXPECT_EQ(cuda_->MoeCombine({.tokens = 1, .top_k = 65, .cols = 1}).code(), kInvalid);
  EXPECT_EQ(cuda_->MoeCombine({.tokens = 1, .top_k = 1, .cols = 0}).code(), kInvalid);
  EXPECT_EQ(cuda_
                ->MoeCombine({.expert_rows = &x,
                              .place_of = &i,
                              .weights = &x,
                              .tokens = 1,
                              .top_k = 1,
                              .cols = 1,
                              .shared_gate = &x,
                              .residual = &x,
                              .y = &x})
                .code(),
            kInvalid);
  EXPECT_TRUE(cuda_->MoeRoute({.num_experts = 4, .top_k = 2}).ok());
  EXPECT_TRUE(cuda_->MoeCombine({.top_k = 2, .cols = 4}).ok());
}

}  // namespace
}  // namespace verbatim::kernels::cuda

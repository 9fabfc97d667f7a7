// Properties of expert capacity: against an independent reference, and what a limit may and may not
// change.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/moe.h"
#include "kernels/numerics/elementary.h"
#include "kernels/numerics/reduction_tree.h"
#include "rapidcheck.h"

namespace verbatim::kernels::cpu {
namespace {

struct Case {
  int64_t tokens = 0, num_experts = 0, top_k = 0, capacity = 0;
  bool normalise = true;
  CapacityOverflow overflow = CapacityOverflow::kDrop;
  std::vector<float> logits;
  std::vector<uint8_t> exempt;
};

struct Routing {
  std::vector<int32_t> experts, wanted;
  std::vector<float> weights;
};

// Few distinct logits, so that ties and full experts are common; now and then a NaN.
Case AnyCase() {
  Case c;
  c.tokens = *rc::gen::inRange<int64_t>(1, 25);
  c.num_experts = *rc::gen::inRange<int64_t>(1, 13);
  c.top_k = *rc::gen::inRange<int64_t>(1, c.num_experts + 1);
  c.capacity = *rc::gen::inRange<int64_t>(1, c.tokens + 2);
  c.normalise = *rc::gen::arbitrary<bool>();
  c.overflow = *rc::gen::arbitrary<bool>() ? CapacityOverflow::kDrop : CapacityOverflow::kNext;
  const auto values =
      *rc::gen::container<std::vector<int>>(c.tokens * c.num_experts, rc::gen::inRange(-8, 9));
  for (const int value : values) {
    c.logits.push_back(value == 8 ? std::numeric_limits<float>::quiet_NaN() : value * 0.5f);
  }
  const auto exempt = *rc::gen::container<std::vector<int>>(c.tokens, rc::gen::inRange(0, 4));
  for (const int value : exempt) c.exempt.push_back(value == 0 ? 1 : 0);
  return c;
}

Routing Route(const Case& c, int64_t capacity, bool ask_wanted = true,
              const MoeStepLimits* limits = nullptr) {
  static ThreadPool pool(2);
  const CpuContext context{&pool, DetectIsa()};
  const size_t slots = static_cast<size_t>(c.tokens * c.top_k);
  Routing out{std::vector<int32_t>(slots, -7), std::vector<int32_t>(slots, -7),
              std::vector<float>(slots, -7.0f)};
  MoeRouteParams params;
  params.logits = c.logits.data();
  params.tokens = c.tokens;
  params.num_experts = c.num_experts;
  params.top_k = c.top_k;
  params.normalise = c.normalise;
  params.scale = 1.5f;
  params.capacity = capacity;
  params.overflow = c.overflow;
  params.exempt = c.exempt.empty() ? nullptr : c.exempt.data();
  params.limits = limits;
  params.experts = out.experts.data();
  params.wanted = ask_wanted ? out.wanted.data() : nullptr;
  params.weights = out.weights.data();
  const absl::Status status = MoeRoute(context, params);
  RC_ASSERT(status.ok());
  return out;
}

bool SameBits(float a, float b) { return std::memcmp(&a, &b, 4) == 0 || (a != a && b != b); }

// Straight from the contract: whole orders by sorting, sets, one slot after the other.
Routing Reference(const Case& c) {
  std::vector<std::vector<int32_t>> order(c.tokens);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float* row = &c.logits[t * c.num_experts];
    for (int32_t e = 0; e < c.num_experts; ++e) order[t].push_back(e);
    std::stable_sort(order[t].begin(), order[t].end(), [&](int32_t a, int32_t b) {
      if (row[a] != row[a]) return false;
      return row[b] != row[b] || row[a] > row[b];
    });
  }
  std::map<int32_t, int64_t> taken;
  std::vector<std::vector<int32_t>> mine(c.tokens);
  for (int64_t rank = 0; rank < c.top_k; ++rank) {
    for (int64_t t = 0; t < c.tokens; ++t) {
      const int32_t first = order[t][rank];
      if (c.exempt[t] != 0) {
        mine[t].push_back(first);
        continue;
      }
      const std::set<int32_t> own(mine[t].begin(), mine[t].end());
      const auto free = [&](int32_t e) { return taken[e] < c.capacity && own.count(e) == 0; };
      int32_t expert = -1;
      if (free(first)) {
        expert = first;
      } else if (c.overflow == CapacityOverflow::kNext) {
        const auto next = std::find_if(order[t].begin(), order[t].end(), free);
        if (next != order[t].end()) expert = *next;
      }
      if (expert >= 0) ++taken[expert];
      mine[t].push_back(expert);
    }
  }
  Routing out;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float* row = &c.logits[t * c.num_experts];
    std::vector<float> e;
    for (int32_t i = 0; i < c.num_experts; ++i) {
      e.push_back(numerics::ExpF(row[i] - row[order[t][0]]));
    }
    float sum = 0.0f;
    for (int64_t r = 0; r < c.top_k; ++r) {
      sum += e[mine[t][r] >= 0 ? mine[t][r] : order[t][r]];
    }
    if (!c.normalise) sum = numerics::RowSum(e.data(), c.num_experts);
    for (int64_t r = 0; r < c.top_k; ++r) {
      out.experts.push_back(mine[t][r]);
      out.wanted.push_back(order[t][r]);
      out.weights.push_back(mine[t][r] >= 0 ? 1.5f * (e[mine[t][r]] / sum) : 0.0f);
    }
  }
  return out;
}

void AssertSame(const Routing& a, const Routing& b) {
  RC_ASSERT(a.experts == b.experts);
  RC_ASSERT(a.wanted == b.wanted);
  for (size_t i = 0; i < a.weights.size(); ++i) RC_ASSERT(SameBits(a.weights[i], b.weights[i]));
}

// Rows behind limits.tokens might as well not be there, but that their slots are lost.
TEST(MoeCapacityTest, LimitsInMemoryTakeThePlaceOfParameters) {
  EXPECT_TRUE(rc::check([] {
    const Case c = AnyCase();
    const bool limited = *rc::gen::arbitrary<bool>();
    Case fewer = c;
    fewer.tokens = *rc::gen::inRange<int64_t>(0, c.tokens + 1);
    fewer.logits.resize(static_cast<size_t>(fewer.tokens * c.num_experts));
    fewer.exempt.resize(static_cast<size_t>(fewer.tokens));
    Routing expected = Route(fewer, limited ? c.capacity : 0);
    const size_t slots = static_cast<size_t>(c.tokens * c.top_k);
    expected.experts.resize(slots, -1);
    expected.wanted.resize(slots, -1);
    expected.weights.resize(slots, 0.0f);
    const MoeStepLimits limits{.tokens = static_cast<int32_t>(fewer.tokens),
                               .capacity = static_cast<int32_t>(c.capacity)};
    AssertSame(Route(c, limited ? 1 : 0, true, &limits), expected);
  }));
}

TEST(MoeCapacityTest, LimitsThatCannotBeAreRefused) {
  ThreadPool pool(1);
  const CpuContext context{&pool, DetectIsa()};
  const float logits[4] = {};
  int32_t experts[2];
  float weights[2];
  MoeRouteParams params{.logits = logits, .tokens = 2, .num_experts = 2, .top_k = 1, .capacity = 1};
  params.experts = experts;
  params.weights = weights;
  for (const MoeStepLimits& limits : {MoeStepLimits{3, 1}, MoeStepLimits{-1, 1}, {1, 0}}) {
    params.limits = &limits;
    EXPECT_EQ(MoeRoute(context, params).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(MoeCapacityTest, IsTheReference) {
  EXPECT_TRUE(rc::check([] {
    const Case c = AnyCase();
    const Routing routing = Route(c, c.capacity);
    AssertSame(routing, Reference(c));
    Routing unasked = Route(c, c.capacity, false);
    unasked.wanted = routing.wanted;
    AssertSame(routing, unasked);
  }));
}

TEST(MoeCapacityTest, NoExpertTakesMoreFromRowsThatCount) {
  EXPECT_TRUE(rc::check([] {
    const Case c = AnyCase();
    const Routing routing = Route(c, c.capacity);
    std::vector<int64_t> taken(c.num_experts, 0);
    for (int64_t slot = 0; slot < c.tokens * c.top_k; ++slot) {
      if (c.exempt[slot / c.top_k] == 0 && routing.experts[slot] >= 0) {
        ++taken[routing.experts[slot]];
      }
    }
    for (const int64_t count : taken) RC_ASSERT(count <= c.capacity);
  }));
}

TEST(MoeCapacityTest, ExemptRowsAreAsWithoutLimitAndChangeNobody) {
  EXPECT_TRUE(rc::check([] {
    Case c = AnyCase();
    const Routing limited = Route(c, c.capacity), unlimited = Route(c, 0);
    for (int64_t slot = 0; slot < c.tokens * c.top_k; ++slot) {
      if (c.exempt[slot / c.top_k] == 0) continue;
      RC_ASSERT(limited.experts[slot] == unlimited.experts[slot]);
      RC_ASSERT(SameBits(limited.weights[slot], unlimited.weights[slot]));
    }
    // The other rows alone.
    Case rest = c;
    rest.logits.clear();
    rest.exempt.clear();
    std::vector<int64_t> kept;
    for (int64_t t = 0; t < c.tokens; ++t) {
      if (c.exempt[t] != 0) continue;
      kept.push_back(t);
      rest.logits.insert(rest.logits.end(), &c.logits[t * c.num_experts],
                         &c.logits[t * c.num_experts] + c.num_experts);
    }
    rest.tokens = static_cast<int64_t>(kept.size());
    if (kept.empty()) return;
    const Routing without = Route(rest, c.capacity);
    for (size_t i = 0; i < kept.size(); ++i) {
      for (int64_t r = 0; r < c.top_k; ++r) {
        const size_t a = i * c.top_k + r, b = kept[i] * c.top_k + r;
        RC_ASSERT(without.experts[a] == limited.experts[b]);
        RC_ASSERT(SameBits(without.weights[a], limited.weights[b]));
      }
    }
  }));
}

TEST(MoeCapacityTest, EnoughForAllIsNoLimit) {
  EXPECT_TRUE(rc::check([] {
    const Case c = AnyCase();
    AssertSame(Route(c, c.tokens * c.top_k), Route(c, 0));
  }));
}

TEST(MoeCapacityTest, DroppingKeepsTheOtherWeights) {
  EXPECT_TRUE(rc::check([] {
    Case c = AnyCase();
    c.overflow = CapacityOverflow::kDrop;
    const Routing limited = Route(c, c.capacity), unlimited = Route(c, 0);
    bool lost = false;
    for (int64_t slot = 0; slot < c.tokens * c.top_k; ++slot) {
      RC_ASSERT(limited.wanted[slot] == unlimited.experts[slot]);
      if (limited.experts[slot] >= 0) {
        RC_ASSERT(limited.experts[slot] == unlimited.experts[slot]);
        RC_ASSERT(SameBits(limited.weights[slot], unlimited.weights[slot]));
      } else {
        RC_ASSERT(limited.experts[slot] == -1);
        RC_ASSERT(SameBits(limited.weights[slot], 0.0f));
        lost = true;
      }
    }
    RC_CLASSIFY(lost, "a slot was lost");
  }));
}

TEST(MoeCapacityTest, NextNeverGivesATokenAnExpertTwice) {
  EXPECT_TRUE(rc::check([] {
    Case c = AnyCase();
    c.overflow = CapacityOverflow::kNext;
    const Routing routing = Route(c, c.capacity);
    bool rerouted = false;
    for (int64_t t = 0; t < c.tokens; ++t) {
      std::set<int32_t> seen;
      for (int64_t r = 0; r < c.top_k; ++r) {
        const int32_t expert = routing.experts[t * c.top_k + r];
        if (expert >= 0) RC_ASSERT(seen.insert(expert).second);
        rerouted = rerouted || (expert >= 0 && expert != routing.wanted[t * c.top_k + r]);
      }
    }
    RC_CLASSIFY(rerouted, "a slot was rerouted");
  }));
}

// Five tokens, all of which want expert 0, then 1: what a reader would work out by hand.
TEST(MoeCapacityTest, ByHand) {
  Case c;
  c.tokens = 5;
  c.num_experts = 3;
  c.top_k = 2;
  c.exempt = {0, 1, 0, 0, 0};
  for (int t = 0; t < 5; ++t) c.logits.insert(c.logits.end(), {2, 1, 0});
  EXPECT_EQ(Route(c, 2).experts, (std::vector<int32_t>{0, 1, 0, 1, 0, 1, -1, -1, -1, -1}));
  c.overflow = CapacityOverflow::kNext;
  // Rank 0: 0, (0), 0, then 1 and 1. Rank 1: expert 1 is full, so 2 and 2, then nothing is left.
  EXPECT_EQ(Route(c, 2).experts, (std::vector<int32_t>{0, 2, 0, 1, 0, 2, 1, -1, 1, -1}));
}

}  // namespace
}  // namespace verbatim::kernels::cpu

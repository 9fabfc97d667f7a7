// Routing, permutation and the weighted sum of a mixture of experts on the CPU: checks, work split
// and expert capacity.
#include "kernels/cpu/moe.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/moe_kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {
namespace {

const MoeKernels& KernelsOf(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return isa_avx512::kMoeKernels;
    case Isa::kAvx2:
      return isa_avx2::kMoeKernels;
#endif
    default:
      return isa_scalar::kMoeKernels;
  }
}

// A few integer operations for each logit: about as much as two elements of a plain pass.
constexpr int64_t kMinLogitsPerThread = kMinElementsPerThread / 2;

absl::Status CheckShape(const char* operation, int64_t tokens, int64_t num_experts, int64_t top_k) {
  if (tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat(operation, ": tokens is ", tokens));
  }
  absl::Status status = CheckExperts(operation, num_experts, top_k);
  if (!status.ok()) return status;
  if (tokens > std::numeric_limits<int32_t>::max() / top_k) {
    return absl::InvalidArgumentError(
        absl::StrCat(operation, ": tokens ", tokens, " times top_k ", top_k, " is too large"));
  }
  return absl::OkStatus();
}

bool IsExempt(const MoeRouteParams& params, int64_t row) {
#ifdef VERBATIM_FAULT_EXPERT_CAPACITY
  // Only in builds that show that the conformance suite can fail: exempt rows compete for slots
  // like all others.
  (void)params, (void)row;
  return false;
#else
  return params.exempt != nullptr && params.exempt[row] != 0;
#endif
}

#ifdef VERBATIM_FAULT_EXPERT_ORDER
// Only in builds that show that the conformance suite can fail: a token's experts, each with its
// weight, in descending order of rank where there are many tokens.
MoeCombineParams WithFault(const MoeCombineParams& params) {
  if (params.tokens <= 8) return params;
  thread_local std::vector<int32_t> place_of;
  thread_local std::vector<float> weights;
  const int64_t slots = params.tokens * params.top_k;
  place_of.assign(params.place_of, params.place_of + slots);
  weights.assign(params.weights, params.weights + slots);
  for (int64_t at = 0; at < slots; at += params.top_k) {
    std::reverse(place_of.begin() + at, place_of.begin() + at + params.top_k);
    std::reverse(weights.begin() + at, weights.begin() + at + params.top_k);
  }
  MoeCombineParams out = params;
  out.place_of = place_of.data();
  out.weights = weights.data();
  return out;
}
#else
const MoeCombineParams& WithFault(const MoeCombineParams& params) { return params; }
#endif

// Hands out the slots of rows that are not exempt, rank by rank and within a rank in row order.
void AssignWithinCapacity(const MoeRouteParams& params, const int32_t* wanted) {
  const int64_t top_k = params.top_k;
  int64_t taken[kMaxExperts] = {};
  int64_t full_experts = 0;
  // The first of the row's order that is neither full nor among `mine`, or -1.
  const auto next = [&](const float* logits, const int32_t* mine, int64_t rank) {
    int32_t best = -1;
    uint32_t best_key = 0;
    if (full_experts == params.num_experts) return best;
    for (int32_t e = 0; e < params.num_experts; ++e) {
      if (taken[e] >= params.capacity) continue;
      const uint32_t key = OrderKey(logits[e]);
      if (best >= 0 && key <= best_key) continue;
      if (std::find(mine, mine + rank, e) != mine + rank) continue;
      best = e;
      best_key = key;
    }
    return best;
  };
  for (int64_t rank = 0; rank < top_k; ++rank) {
    for (int64_t row = 0; row < params.tokens; ++row) {
      int32_t* mine = params.experts + row * top_k;
      int32_t expert = wanted[row * top_k + rank];
      if (IsExempt(params, row)) {
        mine[rank] = expert;
        continue;
      }
      const bool own = std::find(mine, mine + rank, expert) != mine + rank;
      if (own || taken[expert] >= params.capacity) {
        expert = params.overflow == CapacityOverflow::kNext
                     ? next(params.logits + row * params.num_experts, mine, rank)
                     : -1;
      }
      mine[rank] = expert;
      if (expert >= 0 && ++taken[expert] == params.capacity) ++full_experts;
    }
  }
}

// The rows that there are, without those behind them, whose slots are lost.
absl::StatusOr<MoeRouteParams> WithinLimits(const MoeRouteParams& params) {
  MoeRouteParams present = params;
  if (params.limits == nullptr) return present;
  present.tokens = params.limits->tokens;
  if (params.capacity != 0) present.capacity = params.limits->capacity;
  if (present.tokens < 0 || present.tokens > params.tokens ||
      (params.capacity != 0 && present.capacity < 1)) {
    return absl::InvalidArgumentError(absl::StrCat("MoeRoute: limits.tokens ", present.tokens,
                                                   " of ", params.tokens, ", limits.capacity ",
                                                   params.limits->capacity));
  }
  const int64_t begin = present.tokens * params.top_k, end = params.tokens * params.top_k;
  std::fill(params.experts + begin, params.experts + end, -1);
  if (params.wanted != nullptr) std::fill(params.wanted + begin, params.wanted + end, -1);
  std::fill(params.weights + begin, params.weights + end, 0.0f);
  return present;
}

}  // namespace

absl::Status MoeRoute(const CpuContext& context, const MoeRouteParams& whole) {
  if (absl::Status status = CheckShape("MoeRoute", whole.tokens, whole.num_experts, whole.top_k);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckMoeRoute(whole); !status.ok()) return status;
  if (whole.tokens == 0) return absl::OkStatus();
  const absl::StatusOr<MoeRouteParams> within = WithinLimits(whole);
  if (!within.ok()) return within.status();
  const MoeRouteParams& params = *within;
  if (params.tokens == 0) return absl::OkStatus();
  const MoeKernels& kernels = KernelsOf(context.isa);
  if (params.capacity == 0) {
    ParallelRows(context, params.tokens, params.num_experts, kMinLogitsPerThread,
                 [&](int64_t begin, int64_t end) {
                   kernels.select(params, params.experts, begin, end);
                   kernels.weigh(params, params.experts, begin, end);
                 });
    if (params.wanted != nullptr) {
      std::copy_n(params.experts, params.tokens * params.top_k, params.wanted);
    }
    return absl::OkStatus();
  }
  thread_local std::vector<int32_t> scratch;  // kept: steps allocate nothing
  int32_t* wanted = params.wanted;
  if (wanted == nullptr) {
    scratch.resize(static_cast<size_t>(params.tokens * params.top_k));
    wanted = scratch.data();
  }
  ParallelRows(context, params.tokens, params.num_experts, kMinLogitsPerThread,
               [&](int64_t begin, int64_t end) { kernels.select(params, wanted, begin, end); });
  AssignWithinCapacity(params, wanted);
  ParallelRows(context, params.tokens, params.num_experts, kMinLogitsPerThread,
               [&](int64_t begin, int64_t end) { kernels.weigh(params, wanted, begin, end); });
  return absl::OkStatus();
}

absl::Status MoePermute(const CpuContext&, const MoePermuteParams& params) {
  if (absl::Status status =
          CheckShape("MoePermute", params.tokens, params.num_experts, params.top_k);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckMoePermute(params); !status.ok()) return status;
  const int64_t slots = params.tokens * params.top_k;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (params.experts[slot] < -1 || params.experts[slot] >= params.num_experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("MoePermute: experts[", slot / params.top_k, ", ", slot % params.top_k,
                       "] is ", params.experts[slot], " of ", params.num_experts, " experts"));
    }
  }
  // next[e]: the next free place of expert e.
  int32_t next[kMaxExperts] = {};
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (params.experts[slot] >= 0) ++next[params.experts[slot]];
  }
  int32_t places = 0;
  for (int64_t e = 0; e < params.num_experts; ++e) {
    params.offsets[e] = places;
    places += next[e];
    next[e] = params.offsets[e];
  }
  params.offsets[params.num_experts] = places;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int32_t expert = params.experts[slot];
    params.place_of[slot] = expert < 0 ? -1 : next[expert]++;
    if (expert >= 0) {
      params.token_of[params.place_of[slot]] = static_cast<int32_t>(slot / params.top_k);
    }
  }
  std::fill(params.token_of + places, params.token_of + slots, 0);
  if (params.totals == nullptr) return absl::OkStatus();
  const int64_t counted = params.limits != nullptr ? params.limits->tokens * params.top_k : slots;
  for (int64_t slot = 0; slot < counted; ++slot) {
    const int32_t expert = params.experts[slot];
    ++params.totals[expert < 0 ? params.num_experts : expert];
    if (expert >= 0 && params.wanted != nullptr && params.wanted[slot] != expert) {
      ++params.totals[params.num_experts + 1];
    }
  }
  return absl::OkStatus();
}

absl::Status MoeCombine(const CpuContext& context, const MoeCombineParams& params) {
  if (absl::Status status = CheckShape("MoeCombine", params.tokens, kMaxExperts, params.top_k);
      !status.ok()) {
    return status;
  }
  if (params.cols < 1) {
    return absl::InvalidArgumentError(absl::StrCat("MoeCombine: cols is ", params.cols));
  }
  if (params.tokens == 0) return absl::OkStatus();
  if (params.expert_rows == nullptr || params.place_of == nullptr || params.weights == nullptr) {
    return absl::InvalidArgumentError("MoeCombine: expert_rows, place_of or weights is missing");
  }
  if (params.residual == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError("MoeCombine: residual or y is missing");
  }
  if (params.shared_gate != nullptr && params.shared == nullptr) {
    return absl::InvalidArgumentError("MoeCombine: shared_gate without shared");
  }
  const int64_t slots = params.tokens * params.top_k;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (params.place_of[slot] < -1 || params.place_of[slot] >= slots) {
      return absl::InvalidArgumentError(
          absl::StrCat("MoeCombine: place_of[", slot / params.top_k, ", ", slot % params.top_k,
                       "] is ", params.place_of[slot], " of ", slots, " places"));
    }
  }
  const MoeKernels& kernels = KernelsOf(context.isa);
  const MoeCombineParams& ordered = WithFault(params);
  ParallelRows(context, params.tokens, params.cols * (params.top_k + 2), kMinElementsPerThread,
               [&](int64_t begin, int64_t end) { kernels.combine(ordered, begin, end); });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

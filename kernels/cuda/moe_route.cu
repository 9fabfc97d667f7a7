// MoeRoute: a warp a token orders its experts and weighs them; one warp hands out limited places.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/tree.cuh"
#include "kernels/numerics/elementary.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxRanks = 64;               // kMaxExpertsPerToken
constexpr int kLaneRanks = kMaxRanks / 32;  // rank r is lane r % 32's
constexpr int kTreeDepth = 3;               // of kMaxExperts = 1024: 8 chunks

// Place in the order (logit descending, index ascending): greater comes first, never 0.
__device__ __forceinline__ uint64_t OrderOf(float logit, int64_t expert) {
  const float x = logit + 0.0f;  // −0 equals +0
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t key = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
  if (x != x) key = 0;  // below −infinity
  return static_cast<uint64_t>(key) << 32 | (0xffffffffu - static_cast<uint32_t>(expert));
}
__device__ __forceinline__ int32_t ExpertOf(uint64_t order) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(order));
}
__device__ __forceinline__ uint64_t WarpMax(uint64_t value) {
  for (int half = 16; half > 0; half /= 2) {
    const uint64_t other = ShuffleXor(value, half);
    if (other > value) value = other;
  }
  return value;
}

// The first of a row's order after `last`, to the whole warp.
__device__ __forceinline__ uint64_t NextInOrder(const float* logits, int64_t num_experts,
                                                uint64_t last, int lane) {
  uint64_t best = 0;
  for (int64_t e = lane; e < num_experts; e += 32) {
    const uint64_t order = OrderOf(logits[e], e);
    if (order < last && order > best) best = order;
  }
  return WarpMax(best);
}

// The sum of e^(logit − greatest) over all experts, by the row-reduction tree.
__device__ __forceinline__ float SumOverAll(const float* logits, int64_t num_experts,
                                            float greatest, int lane) {
  const int64_t chunks = numerics::ChunkCount(num_experts);
  numerics::TreeStream<float, kTreeDepth> stream(chunks);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    float sum = 0.0f;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int64_t e = chunk * numerics::kChunkLength + step * 32 + lane;
      if (e < num_experts) sum = sum + numerics::ExpF(logits[e] - greatest);
    }
    stream.Push(sum, [](float left, float right) { return left + right; });
  }
  return FoldLanes(stream.Root());
}

// Rows that there are, and places of an expert.
__device__ __forceinline__ int64_t TokensOf(const MoeRouteArgs& args) {
  if (args.limits == nullptr) return args.tokens;
  return args.limits->tokens < args.tokens ? args.limits->tokens : args.tokens;
}
__device__ __forceinline__ int64_t CapacityOf(const MoeRouteArgs& args) {
  return args.limits == nullptr ? args.capacity : args.limits->capacity;
}

// A slot whose place was lost keeps the expert it was for as ~expert until it is weighed.
enum class Phase : uint8_t { kChooseAndWeigh, kChoose, kWeigh };

// A warp a token; shared memory [kWarps][num_experts]: the logits.
__global__ void RouteKernel(MoeRouteArgs args, Phase phase) {
  VERBATIM_SHARED_MEMORY(bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (token >= args.tokens) return;
  if (token >= TokensOf(args)) {
    for (int64_t slot = token * args.top_k + lane; slot < (token + 1) * args.top_k; slot += 32) {
      args.experts[slot] = -1;
      if (args.wanted != nullptr) args.wanted[slot] = -1;
      args.weights[slot] = 0.0f;
    }
    return;
  }
  float* logits = reinterpret_cast<float*>(bytes) + warp * args.num_experts;
  for (int64_t e = lane; e < args.num_experts; e += 32) {
    logits[e] = args.logits[token * args.num_experts + e];
  }
  SyncWarp();
  const int top_k = static_cast<int>(args.top_k);
  int32_t chosen[kLaneRanks];
#pragma unroll
  for (int h = 0; h < kLaneRanks; ++h) chosen[h] = -1;

  uint64_t order = NextInOrder(logits, args.num_experts, ~uint64_t{0}, lane);
  const float greatest = logits[ExpertOf(order)];
  if (phase == Phase::kWeigh) {
#pragma unroll
    for (int h = 0; h < kLaneRanks; ++h) {
      if (h * 32 + lane < top_k) chosen[h] = args.experts[token * top_k + h * 32 + lane];
    }
  } else {
    for (int rank = 0; rank < top_k; ++rank) {
#pragma unroll
      for (int h = 0; h < kLaneRanks; ++h) {
        if (rank == h * 32 + lane) chosen[h] = ExpertOf(order);
      }
      if (rank + 1 < top_k) order = NextInOrder(logits, args.num_experts, order, lane);
    }
#pragma unroll
    for (int h = 0; h < kLaneRanks; ++h) {
      const int rank = h * 32 + lane;
      if (rank >= top_k) continue;
      args.experts[token * top_k + rank] = chosen[h];
      if (args.wanted != nullptr) args.wanted[token * top_k + rank] = chosen[h];
    }
  }
  if (phase == Phase::kChoose) return;

  float share[kLaneRanks];
#pragma unroll
  for (int h = 0; h < kLaneRanks; ++h) {
    const bool exists = h * 32 + lane < top_k;
    const int32_t expert = chosen[h] < 0 ? ~chosen[h] : chosen[h];
    share[h] = exists ? numerics::ExpF(logits[expert] - greatest) : 0.0f;
  }
  float sum = 0.0f;
  if (args.normalise) {
#pragma unroll
    for (int h = 0; h < kLaneRanks; ++h) {
      for (int i = 0; i < 32 && h * 32 + i < top_k; ++i) sum = sum + Shuffle(share[h], i);
    }
  } else {
    sum = SumOverAll(logits, args.num_experts, greatest, lane);
  }
#pragma unroll
  for (int h = 0; h < kLaneRanks; ++h) {
    const int rank = h * 32 + lane;
    if (rank >= top_k) continue;
    const bool lost = chosen[h] < 0;
    args.weights[token * top_k + rank] = lost ? 0.0f : args.scale * (share[h] / sum);
    if (lost) args.experts[token * top_k + rank] = -1;
  }
}

// The first of a row's order that has a place left and is not among the row's experts of lower
// rank, or −1; to the whole warp.
__device__ __forceinline__ int32_t NextWithPlace(const MoeRouteArgs& args, int64_t row, int rank,
                                                 const int32_t* taken, int lane) {
  const float* logits = args.logits + row * args.num_experts;
  const int32_t* mine = args.experts + row * args.top_k;
  const int64_t capacity = CapacityOf(args);
  uint64_t best = 0;
  for (int64_t e = lane; e < args.num_experts; e += 32) {
    if (taken[e] >= capacity) continue;
    const uint64_t order = OrderOf(logits[e], e);
    if (order < best) continue;
    bool own = false;
    for (int r = 0; r < rank; ++r) own = own || mine[r] == e;
    if (!own) best = order;
  }
  best = WarpMax(best);
  return best == 0 ? -1 : ExpertOf(best);
}

// One warp: 32 rows of a rank at a time, each lane supposing that the rows before it get what they
// want. The rows up to the first for which that fails are right, that row is settled by the whole
// warp, and those behind it suppose again. Shared memory [num_experts]: places taken.
__global__ void CapacityKernel(MoeRouteArgs args) {
  VERBATIM_SHARED_MEMORY(bytes);
  int32_t* taken = reinterpret_cast<int32_t*>(bytes);
  const int lane = static_cast<int>(threadIdx.x);
  const int top_k = static_cast<int>(args.top_k);
  const int64_t tokens = TokensOf(args), capacity = CapacityOf(args);
  for (int64_t e = lane; e < args.num_experts; e += 32) taken[e] = 0;
  for (int rank = 0; rank < top_k; ++rank) {
    for (int64_t first = 0; first < tokens; first += 32) {
      const int64_t row = first + lane;
      const bool contends = row < tokens && (args.exempt == nullptr || args.exempt[row] == 0);
      int32_t* slot = args.experts + row * top_k + rank;
      const int32_t expert = contends ? *slot : -1;
      bool own = false;  // taken at a lower rank, in place of another
      if (contends && args.next) {
        for (int r = 1; r <= rank; ++r) own = own || slot[-r] == expert;
      }
      bool pending = contends;
      while (AnyLane(pending)) {
        // Lanes that want the same expert.
        uint32_t same = 0;
        for (int i = 0; i < 32; ++i) {
          const int32_t other = Shuffle(pending ? expert : -1, i);
          same |= static_cast<uint32_t>(pending && other == expert) << i;
        }
        SyncWarp();  // what was taken is there for all lanes
        const uint32_t lower = (1u << lane) - 1;
        const int32_t had = pending ? taken[expert] : 0;
        SyncWarp();  // all lanes have read what was taken
        const bool fails = pending && (own || had + PopCount(same & lower) >= capacity);
        const uint32_t failing = Ballot(fails);
        // Without a next expert to take, a failure changes nothing for the rows behind it.
        const int stop = args.next ? PopCount((failing & (0u - failing)) - 1u) : 32;
        const bool takes = pending && !fails && lane < stop;
        const uint32_t taking = Ballot(takes) & same;
        if (takes && (taking & ~(lower | 1u << lane)) == 0) {
          taken[expert] = had + PopCount(taking);
        }
        if (!args.next) {
          if (fails) *slot = ~expert;
          pending = false;
        } else if (failing != 0) {
          SyncWarp();
          const int32_t next = NextWithPlace(args, first + stop, rank, taken, lane);
          SyncWarp();  // as above
          if (lane == stop) {
            *slot = next >= 0 ? next : ~expert;
            if (next >= 0) ++taken[next];
          }
          pending = pending && lane > stop;
        } else {
          pending = false;
        }
      }
    }
    SyncWarp();  // the rank's experts are there for all lanes
  }
}

}  // namespace

int LaunchMoeRoute(const MoeRouteArgs& args, Stream stream) {
  const size_t row_bytes = static_cast<size_t>(args.num_experts) * sizeof(float);
  const LaunchShape shape{dim3(static_cast<unsigned int>((args.tokens + kWarps - 1) / kWarps)),
                          dim3(kWarps * 32), kWarps * row_bytes};
  if (args.capacity == 0) return Launch(RouteKernel, shape, stream, args, Phase::kChooseAndWeigh);
  int error = Launch(RouteKernel, shape, stream, args, Phase::kChoose);
  if (error == 0) error = Launch(CapacityKernel, {dim3(1), dim3(32), row_bytes}, stream, args);
  if (error == 0) error = Launch(RouteKernel, shape, stream, args, Phase::kWeigh);
  return error;
}

}  // namespace verbatim::kernels::cuda

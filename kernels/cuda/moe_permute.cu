// MoePermute: a block an expert finds its slots in ascending order, and how many lie before them.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kWarps = 8;

// Lost slots count as those of one more expert, whose places hold token 0.
__device__ __forceinline__ int32_t ExpertOfSlot(const MoePermuteArgs& args, int64_t slot) {
  const int32_t expert = args.experts[slot];
  return expert < 0 || expert >= args.num_experts ? static_cast<int32_t>(args.num_experts) : expert;
}

__device__ __forceinline__ int32_t WarpSum(int32_t value) {
  for (int half = 16; half > 0; half /= 2) value += ShuffleXor(value, half);
  return value;
}

// Adds what this block alone found to the totals: slots of its expert, or lost ones and those whose
// expert is not the wanted one. By one thread.
__device__ __forceinline__ void AddToTotals(const MoePermuteArgs& args, int32_t expert, bool lost,
                                            const int32_t* of_expert, const int32_t* rerouted) {
  int64_t sum = 0, other = 0;
  for (int w = 0; w < kWarps; ++w) {
    sum += of_expert[w];
    other += rerouted[w];
  }
  args.totals[expert] += sum;
  if (lost) args.totals[expert + 1] += other;
}

// grid (experts + 1); each warp has a stretch of the slots. Shared memory [4][kWarps].
__global__ void PermuteKernel(MoePermuteArgs args) {
  VERBATIM_SHARED_MEMORY(bytes);
  int32_t* below = reinterpret_cast<int32_t*>(bytes);  // slots of lower experts, by warp
  int32_t* equal = below + kWarps;                     // slots of this expert
  int32_t* counted = equal + kWarps;                   // those in rows that count
  int32_t* rerouted = counted + kWarps;                // slots of any expert that is not the wanted
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t expert = static_cast<int32_t>(blockIdx.x);
  const bool lost = expert == args.num_experts;
  const int64_t slots = args.tokens * args.top_k;
  const int64_t stretch = (slots + kWarps * 32 - 1) / (kWarps * 32) * 32;
  const int64_t begin = warp * stretch;
  const int64_t end = begin + stretch < slots ? begin + stretch : slots;

  const int64_t counted_slots = args.limits != nullptr ? args.limits->tokens * args.top_k : slots;

  int32_t own_below = 0, own_equal = 0, own_counted = 0, own_rerouted = 0;
  for (int64_t slot = begin + lane; slot < end; slot += 32) {
    const int32_t e = ExpertOfSlot(args, slot);
    own_below += e < expert ? 1 : 0;
    own_equal += e == expert ? 1 : 0;
    own_counted += e == expert && slot < counted_slots ? 1 : 0;
    if (lost && e != expert && slot < counted_slots && args.wanted != nullptr &&
        args.wanted[slot] != e) {
      ++own_rerouted;
    }
    if (lost && e == expert && args.experts[slot] != -1) AtomicOr(args.fault, kFaultExpert);
  }
  own_below = WarpSum(own_below);
  own_equal = WarpSum(own_equal);
  if (args.totals != nullptr) own_counted = WarpSum(own_counted);
  if (args.totals != nullptr && lost) own_rerouted = WarpSum(own_rerouted);
  if (lane == 0) {
    below[warp] = own_below;
    equal[warp] = own_equal;
    counted[warp] = own_counted;
    rerouted[warp] = own_rerouted;
  }
  SyncThreads();
  int32_t place = 0;
  for (int w = 0; w < kWarps; ++w) place += below[w];
  if (threadIdx.x == 0) args.offsets[expert] = place;
  if (threadIdx.x == 0 && args.totals != nullptr) {
    AddToTotals(args, expert, lost, counted, rerouted);
  }
  for (int w = 0; w < warp; ++w) place += equal[w];

  for (int64_t first = begin; first < end; first += 32) {
    const int64_t slot = first + lane;
    const bool mine = slot < end && ExpertOfSlot(args, slot) == expert;
    const uint32_t all = Ballot(mine);
    if (mine) {
      const int32_t at = place + PopCount(all & ((1u << lane) - 1));
      args.token_of[at] = lost ? 0 : static_cast<int32_t>(slot / args.top_k);
      args.place_of[slot] = lost ? -1 : at;
    }
    place += PopCount(all);
  }
}

}  // namespace

int LaunchMoePermute(const MoePermuteArgs& args, Stream stream) {
  return Launch(PermuteKernel,
                {dim3(static_cast<unsigned int>(args.num_experts + 1)), dim3(kWarps * 32),
                 4 * kWarps * sizeof(int32_t)},
                stream, args);
}

}  // namespace verbatim::kernels::cuda

// Attention on the matrix units for many queries: a block of 64 queries of one KV head, or 32 where
// heads are wide, walks their history, 64 positions at a time, a warp 16 queries.
//
// Values are copied while scores are computed and the next keys while values are summed up. At the
// end of a cut the total so far comes from shared memory, a thread's own part of it, and joins the
// cut; registers would not hold both.
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace attention_mma;  // NOLINT(google-build-using-namespace)

// Warps with different parts of the columns have the same queries.
template <int kDim>
struct WalkShape {
  static constexpr int kParts = Parts<kDim>::kCount;
  static constexpr int kColumns = Parts<kDim>::kColumns;
  static constexpr int kQueries = kThreads / kWarpSize / kParts * kRows;         // of a block
  static constexpr int kBlocks = static_cast<int>(kWalkTileQueries) / kQueries;  // to a tile
};

template <int kDim>
struct WalkMemory {
  static constexpr int kKeys = 0;
  static constexpr int kValues = kKeys + kBlock * kDim * 2;
  static constexpr int kTotals = kValues + kBlock * Shape<kDim>::kValueSegments * 16;
  // Only where there are several cuts.
  static constexpr int kTotalsBytes = WalkShape<kDim>::kColumns / 2 * kThreads * 4;
};

// grid (tiles, KV heads, blocks of a tile).
template <int kDim>
__global__ void __launch_bounds__(kThreads) WalkKernel(AttentionArgs args) {
  using Memory = WalkMemory<kDim>;
  using W = WalkShape<kDim>;
  constexpr int kPairs = W::kColumns / 16;
  constexpr int kSteps = Shape<kDim>::kSteps;
  VERBATIM_SHARED_MEMORY(bytes);
  unsigned char* const keys = bytes + Memory::kKeys;
  unsigned char* const values = bytes + Memory::kValues;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  float* const totals = reinterpret_cast<float*>(bytes + Memory::kTotals) + thread;
  // The longest first: they take the longest.
  const Queries queries{args.tiles[gridDim.x - 1 - blockIdx.x], args.heads_per_kv, blockIdx.y};
  const int begin = static_cast<int>(blockIdx.z) * W::kQueries;
  if (queries.tile.num_queries <= begin) return;
  const History history(args, queries);
  const int first = begin + warp / W::kParts * kRows;
  const int first_column = warp % W::kParts * W::kColumns;
  const auto last_of = [&](int end) {
    return (queries.tile.num_queries < end ? queries.tile.num_queries : end) - 1;
  };
  const int last = last_of(first + kRows);
  const int longest = queries.Visible(last_of(begin + W::kQueries));
  const int blocks = (longest + kBlock - 1) / kBlock;
  const int visible[2] = {queries.Visible(first + lane / 4), queries.Visible(first + lane / 4 + 8)};
  const int shortest_of_warp = queries.Visible(first);
  const int longest_of_warp = last < first ? 0 : queries.Visible(last);

  uint32_t q[kSteps][4];
  LoadQueries<kDim>(args, queries, first, lane, q);
  const auto query = [&](int step, uint32_t(&fragment)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) fragment[i] = q[step][i];
  };

  float total_m[2] = {0.0f, 0.0f}, total_l[2] = {0.0f, 0.0f};
  float m[2] = {0.0f, 0.0f}, l[2] = {0.0f, 0.0f};
  float o[2 * kPairs][4] = {};
  CopyKeys<kDim, kBlock, kThreads>(history, 0, longest, thread, keys);
  CopyAsyncCommit();
  for (int block = 0; block < blocks; ++block) {
    const int start = block * kBlock;
    const bool first_of_cut = block % kBlocksPerCut == 0;
    const Seen seen{{SeenOf(visible[0], start), SeenOf(visible[1], start)},
                    SeenOf(shortest_of_warp, start),
                    SeenOf(longest_of_warp, start)};
    CopyAsyncWait<0>();
    SyncThreads();  // keys are there, and values have been read
    CopyValues<kDim, kBlock, kThreads>(history, start, longest, 0, thread, values);
    CopyAsyncCommit();
    uint32_t p[kBlock / kStep][4] = {};
    float alpha[2] = {1.0f, 1.0f};
    if (seen.most > 0) {
      float s[kBlock / 8][4];
#pragma unroll
      for (int t = 0; t < kBlock / kStep; ++t) {
        Dots<kDim>(query, keys + t * kStep * 16, kBlock, lane, s[2 * t], s[2 * t + 1]);
      }
      float greatest[2], sum[2];
      ScaleAndMaximum(s, seen, args.scale, lane, greatest);
#pragma unroll
      for (int r = 0; r < 2; ++r) greatest[r] = RunningMaximum(first_of_cut, m[r], greatest[r]);
      Weights(s, seen, greatest, lane, p, sum);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (seen.own[r] == 0) continue;
        if (!first_of_cut) alpha[r] = Alpha(m[r], greatest[r]);
        l[r] = first_of_cut ? sum[r] : l[r] * alpha[r] + sum[r];
        m[r] = greatest[r];
      }
    }
    CopyAsyncWait<0>();
    SyncThreads();  // values are there, and keys have been read
    if (block + 1 < blocks) {
      CopyKeys<kDim, kBlock, kThreads>(history, start + kBlock, longest, thread, keys);
    }
    CopyAsyncCommit();
    if (seen.most > 0) {
      WeightedValues<kDim, W::kColumns>(
          p, seen, lane,
          [&](int t) {
            return values + t * kStep * Shape<kDim>::kValueSegments * 16 + first_column * 2;
          },
          [&](int pair, const float(&value)[2][4]) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (seen.own[i / 2] == 0) continue;
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                float& out = o[2 * pair + half][i];
                out = first_of_cut ? value[half][i] : out * alpha[i / 2] + value[half][i];
              }
            }
          });
    }
    const bool last_of_cut = block % kBlocksPerCut == kBlocksPerCut - 1;
    if (!last_of_cut && block + 1 < blocks) continue;
    const int cut_start = block / kBlocksPerCut * kCut;
    if (cut_start > 0) {
      float a[2], b[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float greatest = m[r] > total_m[r] ? m[r] : total_m[r];
        a[r] = numerics::ExpF(total_m[r] - greatest);
        b[r] = numerics::ExpF(m[r] - greatest);
        if (visible[r] <= cut_start) continue;
        total_m[r] = greatest;
        total_l[r] = total_l[r] * a[r] + l[r] * b[r];
      }
#pragma unroll
      for (int n = 0; n < 2 * kPairs; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float total = totals[(4 * n + i) * kThreads];
          const float joined = total * a[i / 2] + o[n][i] * b[i / 2];
          o[n][i] = visible[i / 2] > cut_start ? joined : total;
        }
        SyncWarp();  // keeps registers free: not all totals are to be loaded before the first joins
      }
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        total_m[r] = m[r];
        total_l[r] = l[r];
      }
    }
    if (block + 1 == blocks) continue;
#pragma unroll
    for (int n = 0; n < 2 * kPairs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) totals[(4 * n + i) * kThreads] = o[n][i];
    }
  }
  CopyAsyncWait<0>();

  const int head_dim = static_cast<int>(args.layout.head_dim);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = first + lane / 4 + 8 * r;
    if (i >= queries.tile.num_queries) continue;
    float* y = args.y + queries.Row(i) * args.y_stride + queries.Head(i) * head_dim;
#pragma unroll
    for (int n = 0; n < 2 * kPairs; ++n) {
      const int column = first_column + 8 * n + 2 * (lane % 4);
      if (column >= head_dim) continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float value = o[n][2 * r + e] / total_l[r];
        y[column + e] = args.round ? numerics::RoundToBf16(value) : value;
      }
    }
  }
}

template <int kDim>
int LaunchDim(const AttentionArgs& args, Stream stream) {
  const size_t shared = static_cast<size_t>(
      WalkMemory<kDim>::kTotals + (args.max_cuts > 1 ? WalkMemory<kDim>::kTotalsBytes : 0));
  return Launch(WalkKernel<kDim>,
                {dim3(static_cast<unsigned int>(args.num_tiles),
                      static_cast<unsigned int>(args.layout.num_kv_heads),
                      static_cast<unsigned int>(WalkShape<kDim>::kBlocks)),
                 dim3(kThreads), shared},
                stream, args);
}

}  // namespace

SharedNeeds AttentionMmaWalkNeeds() {
  SharedNeeds needs;
  ForHeadDims([&]<int kDim>() {
    needs.push_back({"attention of many queries", FunctionOf(WalkKernel<kDim>),
                     WalkMemory<kDim>::kTotals + WalkMemory<kDim>::kTotalsBytes});
  });
  return needs;
}

int LaunchAttentionMmaWalk(const AttentionArgs& args, Stream stream) {
  return ForHeadDim(args.layout.head_dim,
                    [&]<int kDim>() { return LaunchDim<kDim>(args, stream); });
}

}  // namespace verbatim::kernels::cuda

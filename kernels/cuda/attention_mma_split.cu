// Attention on the matrix units for few queries (decoding): a block a cut of up to 16 queries of
// one KV head, a warp a block of 64 positions of it; cuts are folded afterwards. The contract's
// cuts have 256 positions; THROUGHPUT has shorter ones where they would leave multiprocessors idle.
//
// Warps meet twice: the greatest score of a block depends on the blocks before it, and their sums
// are added up at the end. The arithmetic is that of a block that walks them.
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace attention_mma;  // NOLINT(google-build-using-namespace)

// Two stages a warp: keys of so many positions each, in turns, then each half of the block's
// values.
constexpr int kHalf = kBlock / 2;
template <int kDim>
inline constexpr int kKeyPositions = kHalf / Parts<kDim>::kCount;

// kCutBlocks: blocks to a cut, and warps.
template <int kDim, int kCutBlocks>
struct SplitMemory {
  static constexpr int kMaxima = 0;                               // [warp][row] float
  static constexpr int kSums = kMaxima + kCutBlocks * kRows * 4;  // [warp][row] float
  static constexpr int kStages = kSums + kCutBlocks * kRows * 4;  // [warp][2] kStageBytes
  static constexpr int kColumns = Parts<kDim>::kColumns;
  static constexpr int kStageBytes = kHalf * Shape<kColumns>::kValueSegments * 16;
  static_assert(kKeyPositions<kDim> * kDim * 2 <= kStageBytes);
  static constexpr int kOutputStride = kColumns + 8;  // floats
  static constexpr int kOutputs = kStages;            // [warp][row], once read
  static constexpr int kStagesBytes = kCutBlocks * 2 * kStageBytes;
  static constexpr int kOutputsBytes = kCutBlocks * kRows * kOutputStride * 4;
  static constexpr int kBytes =
      kStages + (kStagesBytes > kOutputsBytes ? kStagesBytes : kOutputsBytes);
};

// grid (tiles, KV heads, cuts · parts of the columns).
template <int kDim, int kCutBlocks>
__global__ void __launch_bounds__(32 * kCutBlocks) SplitKernel(AttentionArgs args) {
  using Memory = SplitMemory<kDim, kCutBlocks>;
  constexpr int kLength = kCutBlocks * kBlock;
  constexpr int kColumns = Memory::kColumns;
  constexpr int kPairs = kColumns / 16;
  constexpr int kParts = Parts<kDim>::kCount;
  constexpr int kRounds = kBlock / kKeyPositions<kDim>;
  VERBATIM_SHARED_MEMORY(bytes);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  float* const maxima = reinterpret_cast<float*>(bytes + Memory::kMaxima);
  float* const sums = reinterpret_cast<float*>(bytes + Memory::kSums);
  float* const outputs = reinterpret_cast<float*>(bytes + Memory::kOutputs);
  unsigned char* const stages = bytes + Memory::kStages + warp * 2 * Memory::kStageBytes;

  const Queries queries{args.tiles[blockIdx.x], args.heads_per_kv, blockIdx.y};
  const int count = queries.tile.num_queries;
  const int longest = count > 0 ? queries.Longest() : 0;
  const int cut = static_cast<int>(blockIdx.z) / kParts, cut_start = cut * kLength;
  const int first_column = static_cast<int>(blockIdx.z) % kParts * kColumns;
  if (cut_start >= longest) return;
  const History history(args, queries);
  const int start = cut_start + warp * kBlock;
  const Seen seen{
      {SeenOf(queries.Visible(lane / 4), start), SeenOf(queries.Visible(lane / 4 + 8), start)},
      SeenOf(queries.Visible(0), start),
      SeenOf(longest, start)};

  const auto stage_of = [&](int half) { return stages + half * Memory::kStageBytes; };
  const auto copy_keys = [&](int round) {
    const int from = round * kKeyPositions<kDim>;
    if (seen.most > from) {
      CopyKeys<kDim, kKeyPositions<kDim>, 32>(history, start + from, longest, lane,
                                              stage_of(round % 2));
    }
    CopyAsyncCommit();
  };
  const auto copy_values = [&](int half) {
    if (seen.most > half * kHalf) {
      CopyValues<kColumns, kHalf, 32>(history, start + half * kHalf, longest, first_column, lane,
                                      stage_of(half));
    }
    CopyAsyncCommit();
  };
  copy_keys(0);
  copy_keys(1);
  uint32_t q[Shape<kDim>::kSteps][4];
  LoadQueries<kDim>(args, queries, 0, lane, q);
  const auto query = [&](int step, uint32_t(&fragment)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) fragment[i] = q[step][i];
  };
  float s[kBlock / 8][4] = {};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    CopyAsyncWait<1>();
    SyncWarp();  // the keys are there for all lanes
    if (seen.most > round * kKeyPositions<kDim>) {
#pragma unroll
      for (int t = 0; t < kKeyPositions<kDim> / kStep; ++t) {
        const int n = round * (kKeyPositions<kDim> / 8) + 2 * t;
        Dots<kDim>(query, stage_of(round % 2) + t * kStep * 16, kKeyPositions<kDim>, lane, s[n],
                   s[n + 1]);
      }
    }
    SyncWarp();  // and have been read
    if (round + 2 < kRounds) {
      copy_keys(round + 2);
    } else {
      copy_values(round + 2 - kRounds);
    }
  }

  float greatest[2], sum[2];
  ScaleAndMaximum(s, seen, args.scale, lane, greatest);
  if (lane % 4 == 0) {
    maxima[warp * kRows + lane / 4] = greatest[0];
    maxima[warp * kRows + lane / 4 + 8] = greatest[1];
  }
  SyncThreads();
  const auto running_maximum = [&](int block, int row) {
    float so_far = maxima[row];
    for (int b = 1; b <= block; ++b) {
      so_far = RunningMaximum(false, so_far, maxima[b * kRows + row]);
    }
    return so_far;
  };
#pragma unroll
  for (int r = 0; r < 2; ++r) greatest[r] = running_maximum(warp, lane / 4 + 8 * r);
  uint32_t p[kBlock / kStep][4];
  Weights(s, seen, greatest, lane, p, sum);
  CopyAsyncWait<0>();
  SyncWarp();
  float o[2 * kPairs][4] = {};
  if (seen.most > 0) {
    WeightedValues<kColumns, kColumns>(
        p, seen, lane,
        [&](int t) {
          return stage_of(t / 2) + t % 2 * kStep * Shape<kColumns>::kValueSegments * 16;
        },
        [&](int pair, const float(&value)[2][4]) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            o[2 * pair][i] = value[0][i];
            o[2 * pair + 1][i] = value[1][i];
          }
        });
  }
  SyncThreads();  // every warp has read its values
  if (lane % 4 == 0) {
    sums[warp * kRows + lane / 4] = sum[0];
    sums[warp * kRows + lane / 4 + 8] = sum[1];
  }
#pragma unroll
  for (int n = 0; n < 2 * kPairs; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      outputs[(warp * kRows + lane / 4 + 8 * (i / 2)) * Memory::kOutputStride + 8 * n +
              2 * (lane % 4) + i % 2] = o[n][i];
    }
  }
  SyncThreads();

  // The blocks of a row's cut, joined in ascending order.
  const int head_dim = static_cast<int>(args.layout.head_dim);
  const int width = head_dim - first_column < kColumns ? head_dim - first_column : kColumns;
  for (int i = thread; i < count * width; i += 32 * kCutBlocks) {
    const int row = i / width, column = i % width, d = first_column + column;
    const int visible = queries.Visible(row);
    if (visible <= cut_start) continue;
    float m = maxima[row], l = sums[row], out = outputs[row * Memory::kOutputStride + column];
    for (int b = 1; b < kCutBlocks && cut_start + b * kBlock < visible; ++b) {
      const float now = RunningMaximum(false, m, maxima[b * kRows + row]);
      const float alpha = Alpha(m, now);
      m = now;
      l = l * alpha + sums[b * kRows + row];
      out = out * alpha + outputs[(b * kRows + row) * Memory::kOutputStride + column];
    }
    if (args.partials != nullptr) {
      float* partial =
          args.partials +
          ((queries.Row(row) * args.num_heads + queries.Head(row)) * args.max_cuts + cut) *
              (head_dim + 2);
      partial[2 + d] = out;
      if (d == 0) {
        partial[0] = m;
        partial[1] = l;
      }
    } else {
      const float value = out / l;
      args.y[queries.Row(row) * args.y_stride + queries.Head(row) * head_dim + d] =
          args.round ? numerics::RoundToBf16(value) : value;
    }
  }
}

template <int kDim, int kCutBlocks>
int LaunchCut(const AttentionArgs& args, Stream stream) {
  return Launch(SplitKernel<kDim, kCutBlocks>,
                {dim3(static_cast<unsigned int>(args.num_tiles),
                      static_cast<unsigned int>(args.layout.num_kv_heads),
                      static_cast<unsigned int>(args.max_cuts) * Parts<kDim>::kCount),
                 dim3(32 * kCutBlocks), static_cast<size_t>(SplitMemory<kDim, kCutBlocks>::kBytes)},
                stream, args);
}

template <int kDim>
int LaunchDim(const AttentionArgs& args, Stream stream) {
  return args.cut_length == kBlock ? LaunchCut<kDim, 1>(args, stream)
                                   : LaunchCut<kDim, kBlocksPerCut>(args, stream);
}

template <int kDim>
void AddNeeds(SharedNeeds* needs) {
  needs->push_back({"attention of few queries, short cuts", FunctionOf(SplitKernel<kDim, 1>),
                    static_cast<size_t>(SplitMemory<kDim, 1>::kBytes)});
  needs->push_back({"attention of few queries", FunctionOf(SplitKernel<kDim, kBlocksPerCut>),
                    static_cast<size_t>(SplitMemory<kDim, kBlocksPerCut>::kBytes)});
}

}  // namespace

SharedNeeds AttentionMmaSplitNeeds() {
  SharedNeeds needs;
  ForHeadDims([&]<int kDim>() { AddNeeds<kDim>(&needs); });
  return needs;
}

int LaunchAttentionMmaSplit(const AttentionArgs& args, Stream stream) {
  const int error =
      ForHeadDim(args.layout.head_dim, [&]<int kDim>() { return LaunchDim<kDim>(args, stream); });
  if (error != 0 || args.partials == nullptr) return error;
  return LaunchAttentionFold(args, stream);
}

}  // namespace verbatim::kernels::cuda

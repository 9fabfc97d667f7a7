// PINNED matrix products on the matrix units: bf16 inputs, fp32 accumulators.
//
// The reduction is cut into shards, nodes of the tree; an output's shard is one chain of
// m16n8k16 instructions in ascending k from +0, and shards join by the tree's top. Three kernels
// with that same arithmetic share the work differently: a warp a shard for few tokens, whole tiles
// with the shards one after the other for many, and tiles of single shards, joined by a kernel of
// their own, where whole tiles would not fill the device.
//
// Outputs are the instruction's 16 rows and tokens its 8 columns, so that few tokens waste little.
// Weights and activations lie packed in 16-byte segments of 8 columns, 8 neighbouring rows
// together: what LoadMatrixX4 reads without bank conflicts.
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/tree_nodes.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kSegment = 8;                   // columns of 16 bytes
constexpr int kStepSegments = 2;              // of one instruction
constexpr int kGroupSegments = 4;             // of 32 columns
constexpr int kWeightSegmentBytes = 32 * 16;  // a row tile's
constexpr int kTokenSegmentBytes = 8 * 16;    // a token tile's

constexpr int kPackThreads = 256;

// A thread a token and segment.
__global__ void PackActivationsKernel(PackActivationsArgs args) {
  const int64_t segments = args.groups * kGroupSegments;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (i >= args.token_tiles * segments * 8) return;
  const int64_t tile = i / (segments * 8), segment = i / 8 % segments;
  const int64_t token = tile * 8 + i % 8;
  uint32_t pairs[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    uint32_t pair = 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int64_t column = segment * kSegment + 2 * p + e;
      const bool exists = token < args.tokens && column < args.cols;
      const uint32_t bits =
          exists ? numerics::Bf16FromFloat(args.x[token * args.x_stride + column]) : 0u;
      pair |= bits << (16 * e);
    }
    pairs[p] = pair;
  }
  static_cast<uint4*>(args.packed)[i] = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Segments [first, last) of a shard; last may fall short of whole chunks at the matrix's end.
struct ShardRange {
  int64_t first, last;
};
__device__ __forceinline__ ShardRange RangeOf(const PackedPart& part, int shard) {
  constexpr int64_t kChunkSegments = numerics::kChunkLength / kSegment;
  const TreeNode node = ShardAt(shard, numerics::ChunkCount(part.cols));
  const int64_t end = (node.first + node.count) * kChunkSegments;
  const int64_t all = part.groups() * kGroupSegments;
  return {node.first * kChunkSegments, end < all ? end : all};
}

// The top of the tree over the shards.
__device__ __forceinline__ float JoinShards(const float (&v)[kMaxShards], int shards) {
  static_assert(kMaxShards == 4);
  if (shards == 1) return v[0];
  const float left = v[0] + v[1];
  if (shards == 2) return left;
  return left + (shards == 3 ? v[2] : v[2] + v[3]);
}

// Address of this lane's row for LoadMatrixX4 of a weight fragment: 16 rows, one step.
__device__ __forceinline__ const unsigned char* WeightRow(const unsigned char* segments, int row,
                                                          int lane) {
  return segments + (lane / 16) * kWeightSegmentBytes + (row + lane / 8 % 2 * 8 + lane % 8) * 16;
}
// The same for activations: 8 tokens, two steps.
__device__ __forceinline__ const unsigned char* TokenRow(const unsigned char* segments, int lane) {
  return segments + (lane / 8) * kTokenSegmentBytes + lane % 8 * 16;
}

constexpr int kFewStages = 4;
constexpr int kFewSegments = 8;  // 64 columns a stage

// Few tokens: a warp a shard of 32 outputs × 8 kTiles tokens. grid (row tiles).
template <int kTiles>
__global__ void __launch_bounds__(kMaxShards * 32)
    FewTokensKernel(PackedPart part, int64_t tokens, const unsigned char* packed_x,
                    Epilogue epilogue, int shards) {
  constexpr int kWeightBytes = kFewSegments * kWeightSegmentBytes;
  constexpr int kTileBytes = kFewSegments * kTokenSegmentBytes;
  constexpr int kStageBytes = kWeightBytes + kTiles * kTileBytes;
  VERBATIM_SHARED_MEMORY(bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  unsigned char* const own = bytes + warp * kFewStages * kStageBytes;
  const int64_t tile = blockIdx.x;
  const int64_t segments = part.groups() * kGroupSegments;
  const ShardRange range = RangeOf(part, warp);
  const unsigned char* weights =
      static_cast<const unsigned char*>(part.quants) + tile * segments * kWeightSegmentBytes;
  const int64_t stages = (range.last - range.first + kFewSegments - 1) / kFewSegments;

  const auto load = [&](int64_t stage) {
    if (stage < stages) {
      unsigned char* to = own + stage % kFewStages * kStageBytes;
      const int64_t first = range.first + stage * kFewSegments;
      const int count =
          static_cast<int>(range.last - first < kFewSegments ? range.last - first : kFewSegments);
      for (int s = 0; s < count; ++s) {
        CopyAsync16(to + s * kWeightSegmentBytes + lane * 16,
                    weights + (first + s) * kWeightSegmentBytes + lane * 16, 16);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        for (int i = lane; i < count * 8; i += 32) {
          CopyAsync16(to + kWeightBytes + t * kTileBytes + i * 16,
                      packed_x + (t * segments + first) * kTokenSegmentBytes + i * 16, 16);
        }
      }
    }
    CopyAsyncCommit();
  };

  float sums[2][kTiles][4];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][t][i] = 0.0f;
    }
  }
  for (int64_t stage = 0; stage < kFewStages - 1; ++stage) load(stage);
  for (int64_t stage = 0; stage < stages; ++stage) {
    CopyAsyncWait<kFewStages - 2>();
    SyncWarp();  // the stage is there for all lanes, and its predecessor's place is free
    load(stage + kFewStages - 1);
    const unsigned char* from = own + stage % kFewStages * kStageBytes;
    const int64_t left = range.last - range.first - stage * kFewSegments;
#pragma unroll
    for (int half = 0; half < kFewSegments; half += kGroupSegments) {
      if (half >= left) continue;
      uint32_t x[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        LoadMatrixX4(
            x[t], TokenRow(from + kWeightBytes + t * kTileBytes + half * kTokenSegmentBytes, lane));
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const unsigned char* place = from + (half + step * kStepSegments) * kWeightSegmentBytes;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t w[4];
          LoadMatrixX4(w, WeightRow(place, 16 * m, lane));
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            const uint32_t b[2] = {x[t][2 * step], x[t][2 * step + 1]};
            MmaBf16(sums[m][t], w, b);
          }
        }
      }
    }
  }
  CopyAsyncWait<0>();
  SyncThreads();                                      // the stages' memory is free
  float* partials = reinterpret_cast<float*>(bytes);  // [shards][8 kTiles tokens][32 outputs]
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * m + lane / 4 + 8 * (i / 2);
        const int token = 8 * t + 2 * (lane % 4) + i % 2;
        partials[(warp * 8 * kTiles + token) * 32 + row] = sums[m][t][i];
      }
    }
  }
  SyncThreads();
  const int64_t row = tile * kTileRows + lane;
  for (int64_t token = warp; token < tokens; token += shards) {
    float v[kMaxShards];
#pragma unroll
    for (int i = 0; i < kMaxShards; ++i) {
      v[i] = i < shards ? partials[(i * 8 * kTiles + token) * 32 + lane] : 0.0f;
    }
    if (row < part.rows) epilogue.Store(token, part.first_row + row, JoinShards(v, shards));
  }
}

constexpr int kBlockRowTiles = 4;  // 128 outputs
constexpr int kBlockThreads = 256;
constexpr int kStages = 4;

template <int kTiles>
struct TileAccumulators {
  float v[2][kTiles][4];
};

// Tiles of 128 outputs × 16 kTiles tokens; warps 4 × 2, each 32 outputs × 8 kTiles tokens.
// grid (output tiles, token tiles, shards or 1). With partials: [shards][tokens][rows].
template <int kTiles>
__global__ void __launch_bounds__(kBlockThreads)
    ManyTokensKernel(PackedPart part, int64_t tokens, const unsigned char* packed_x,
                     Epilogue epilogue, float* partials, int shards) {
  constexpr int kTokenTiles = 2 * kTiles;
  constexpr int kWeightBytes = kBlockRowTiles * kGroupSegments * kWeightSegmentBytes;
  constexpr int kStageBytes = kWeightBytes + kTokenTiles * kGroupSegments * kTokenSegmentBytes;
  constexpr int kWeightCopies = kWeightBytes / 16 / kBlockThreads;
  constexpr int kTokenCopies = (kStageBytes - kWeightBytes) / 16;
  VERBATIM_SHARED_MEMORY(bytes);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int warp_row_tile = warp % 4, warp_tile = warp / 4 * kTiles;
  const int64_t first_row_tile = static_cast<int64_t>(blockIdx.x) * kBlockRowTiles;
  const int64_t first_token_tile = static_cast<int64_t>(blockIdx.y) * kTokenTiles;
  const int64_t segments = part.groups() * kGroupSegments;
  const int64_t row_tiles = part.tiles();
  const unsigned char* weights = static_cast<const unsigned char*>(part.quants);

  const int first_shard = partials != nullptr ? static_cast<int>(blockIdx.z) : 0;
  const int last_shard = partials != nullptr ? first_shard + 1 : shards;
  numerics::TreeStream<TileAccumulators<kTiles>, numerics::kShardDepth> stream(last_shard -
                                                                               first_shard);
  for (int shard = first_shard; shard < last_shard; ++shard) {
    const ShardRange range = RangeOf(part, shard);
    const int64_t stages = (range.last - range.first) / kGroupSegments;
    const auto load = [&](int64_t stage) {
      if (stage < stages) {
        unsigned char* to = bytes + stage % kStages * kStageBytes;
        const int64_t segment0 = range.first + stage * kGroupSegments;
#pragma unroll
        for (int c = 0; c < kWeightCopies; ++c) {
          const int i = c * kBlockThreads + thread;  // [row tile][segment][row]
          const int64_t row_tile = first_row_tile + i / (kGroupSegments * 32);
          // Row tiles past the end repeat the last: their outputs are not stored.
          const int64_t exists = row_tile < row_tiles ? row_tile : row_tiles - 1;
          CopyAsync16(to + i * 16,
                      weights + (exists * segments + segment0) * kWeightSegmentBytes +
                          i % (kGroupSegments * 32) * 16,
                      16);
        }
        for (int i = thread; i < kTokenCopies;
             i += kBlockThreads) {  // [token tile][segment][token]
          CopyAsync16(to + kWeightBytes + i * 16,
                      packed_x +
                          ((first_token_tile + i / (kGroupSegments * 8)) * segments + segment0) *
                              kTokenSegmentBytes +
                          i % (kGroupSegments * 8) * 16,
                      16);
        }
      }
      CopyAsyncCommit();
    };

    TileAccumulators<kTiles> sums;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.v[m][t][i] = 0.0f;
      }
    }
    for (int64_t stage = 0; stage < kStages - 1; ++stage) load(stage);
    for (int64_t stage = 0; stage < stages; ++stage) {
      CopyAsyncWait<kStages - 2>();
      SyncThreads();  // the stage is there for all, and its predecessor's place is free
      load(stage + kStages - 1);
      const unsigned char* from = bytes + stage % kStages * kStageBytes;
      const unsigned char* w_from = from + warp_row_tile * kGroupSegments * kWeightSegmentBytes;
      const unsigned char* x_from =
          from + kWeightBytes + warp_tile * kGroupSegments * kTokenSegmentBytes;
      uint32_t w[2][2][4];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          LoadMatrixX4(w[step][m], WeightRow(w_from + step * kStepSegments * kWeightSegmentBytes,
                                             16 * m, lane));
        }
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t x[4];
        LoadMatrixX4(x, TokenRow(x_from + t * kGroupSegments * kTokenSegmentBytes, lane));
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const uint32_t b[2] = {x[2 * step], x[2 * step + 1]};
#pragma unroll
          for (int m = 0; m < 2; ++m) MmaBf16(sums.v[m][t], w[step][m], b);
        }
      }
    }
    CopyAsyncWait<0>();
    SyncThreads();  // before the next shard fills the stages
    stream.Push(sums,
                [](const TileAccumulators<kTiles>& left, const TileAccumulators<kTiles>& right) {
                  TileAccumulators<kTiles> sum;
#pragma unroll
                  for (int m = 0; m < 2; ++m) {
#pragma unroll
                    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
                      for (int i = 0; i < 4; ++i)
                        sum.v[m][t][i] = left.v[m][t][i] + right.v[m][t][i];
                    }
                  }
                  return sum;
                });
  }
  const TileAccumulators<kTiles>& sums = stream.Root();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row =
            (first_row_tile + warp_row_tile) * kTileRows + 16 * m + lane / 4 + 8 * (i / 2);
        const int64_t token = (first_token_tile + warp_tile + t) * 8 + 2 * (lane % 4) + i % 2;
        if (row >= part.rows || token >= tokens) continue;
        if (partials != nullptr) {
          partials[(first_shard * tokens + token) * part.rows + row] = sums.v[m][t][i];
        } else {
          epilogue.Store(token, part.first_row + row, sums.v[m][t][i]);
        }
      }
    }
  }
}

constexpr int kJoinThreads = 256;

// Joins the shards' partial sums. grid (columns, tokens).
__global__ void JoinShardsKernel(const float* partials, int64_t tokens, int64_t rows,
                                 int64_t first_row, Epilogue epilogue, int shards) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kJoinThreads + threadIdx.x;
  const int64_t token = blockIdx.y;
  if (row >= rows) return;
  float v[kMaxShards];
#pragma unroll
  for (int i = 0; i < kMaxShards; ++i) {
    v[i] = i < shards ? partials[(i * tokens + token) * rows + row] : 0.0f;
  }
  epilogue.Store(token, first_row + row, JoinShards(v, shards));
}

unsigned int Blocks(int64_t count, int64_t each) {
  return static_cast<unsigned int>((count + each - 1) / each);
}

template <int kTiles>
int LaunchFew(const GemmPinnedArgs& args, const Epilogue& epilogue, int shards, Stream stream) {
  const unsigned int warps = static_cast<unsigned int>(shards);
  const size_t stage =
      static_cast<size_t>(kFewSegments) * (kWeightSegmentBytes + kTiles * kTokenSegmentBytes);
  return Launch(FewTokensKernel<kTiles>,
                {dim3(static_cast<unsigned int>(args.part.tiles())), dim3(warps * 32),
                 warps * kFewStages * stage},
                stream, args.part, args.tokens, static_cast<const unsigned char*>(args.packed_x),
                epilogue, shards);
}

template <int kTiles>
int LaunchMany(const GemmPinnedArgs& args, const Epilogue& epilogue, int shards, Stream stream) {
  const unsigned int output_tiles = Blocks(args.part.tiles(), kBlockRowTiles);
  const unsigned int token_tiles = Blocks(args.tokens, 16 * kTiles);
  const size_t partial_bytes = static_cast<size_t>(args.tokens * args.part.rows) *
                               static_cast<size_t>(shards) * sizeof(float);
  // Shards get blocks of their own where tiles alone would leave multiprocessors idle.
  const bool split = shards > 1 && partial_bytes <= args.partial_bytes && args.tokens <= 65535 &&
                     static_cast<int64_t>(output_tiles) * token_tiles < args.multiprocessors;
  const size_t stage = static_cast<size_t>(kGroupSegments) *
                       (kBlockRowTiles * kWeightSegmentBytes + 2 * kTiles * kTokenSegmentBytes);
  float* partials = split ? args.partials : nullptr;
  const int error =
      Launch(ManyTokensKernel<kTiles>,
             {dim3(output_tiles, token_tiles, split ? static_cast<unsigned int>(shards) : 1),
              dim3(kBlockThreads), kStages * stage},
             stream, args.part, args.tokens, static_cast<const unsigned char*>(args.packed_x),
             epilogue, partials, shards);
  if (error != 0 || !split) return error;
  return Launch(JoinShardsKernel,
                {dim3(Blocks(args.part.rows, kJoinThreads), static_cast<unsigned int>(args.tokens)),
                 dim3(kJoinThreads), 0},
                stream, args.partials, args.tokens, args.part.rows, args.part.first_row, epilogue,
                shards);
}

}  // namespace

int LaunchPackActivations(const PackActivationsArgs& args, Stream stream) {
  const int64_t items = args.token_tiles * args.groups * kGroupSegments * 8;
  return Launch(PackActivationsKernel, {dim3(Blocks(items, kPackThreads)), dim3(kPackThreads), 0},
                stream, args);
}

int LaunchGemmPinned(const GemmPinnedArgs& args, Stream stream) {
  const Epilogue epilogue{args.y, args.y_stride, args.bias, args.residual, args.round};
  const int shards = ShardCount(numerics::ChunkCount(args.part.cols));
  if (args.tokens <= 8) return LaunchFew<1>(args, epilogue, shards, stream);
  if (args.tokens <= 16) return LaunchFew<2>(args, epilogue, shards, stream);
  if (args.tokens <= 64) return LaunchMany<4>(args, epilogue, shards, stream);
  return LaunchMany<8>(args, epilogue, shards, stream);
}

}  // namespace verbatim::kernels::cuda

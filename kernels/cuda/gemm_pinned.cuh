// PINNED matrix products of a block on the matrix units: bf16 inputs, fp32 accumulators.
//
// The reduction is cut into shards, nodes of the tree; an output's shard is one chain of
// m16n8k16 instructions in ascending k from +0, and shards join by the tree's top. Two ways with
// that same arithmetic share the work differently: a warp a shard for few tokens, whole tiles with
// the shards one after the other for many.
//
// Outputs are the instruction's 16 rows and tokens its 8 columns, so that few tokens waste little.
// Weights and activations are rows of bf16 with a pitch of RowPitch(cols); a stage of the pipeline
// holds 64 columns, 128 bytes, of each row. In shared memory 16-byte segment s of row r lies at
// s ^ (r % 8): what LoadMatrixX4 reads, a segment of 8 neighbouring rows, meets in no bank.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/packed_part.h"
#include "kernels/cuda/tree_nodes.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda::gemm_pinned {

inline constexpr int kSegment = 8;        // columns of 16 bytes
inline constexpr int kStepSegments = 2;   // of one instruction
inline constexpr int kGroupSegments = 4;  // of 32 columns
inline constexpr int kStageSegments = 8;  // of a row in a stage
inline constexpr int kRowBytes = kStageSegments * 16;
inline constexpr int kMostStageBytes = 96 << 10;  // what every device has, of all stages

// Segment `segment` of a row of fp32 values, rounded to bf16; +0 beyond `cols` and for no row.
__device__ __forceinline__ uint4 RoundedSegment(const float* row, int64_t segment, int64_t cols) {
  float values[kSegment] = {};
  const int64_t first = segment * kSegment;
  if (row != nullptr && first + kSegment <= cols && reinterpret_cast<uintptr_t>(row) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kSegment; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + first + i);
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    }
  } else if (row != nullptr) {
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      if (first + i < cols) values[i] = row[first + i];
    }
  }
  uint32_t pairs[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    pairs[p] = numerics::Bf16FromFloat(values[2 * p]) |
               static_cast<uint32_t>(numerics::Bf16FromFloat(values[2 * p + 1])) << 16;
  }
  return uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Segments [first, last) of a shard, whole groups; last may fall short of whole chunks at the
// matrix's end.
struct ShardRange {
  int64_t first, last;
};
__device__ __forceinline__ ShardRange RangeOf(const PackedPart& part, int shard, int depth) {
  constexpr int64_t kChunkSegments = numerics::kChunkLength / kSegment;
  const TreeNode node = ShardAt(shard, numerics::ChunkCount(part.cols), depth);
  const int64_t end = (node.first + node.count) * kChunkSegments;
  const int64_t all = part.groups() * kGroupSegments;
  return {node.first * kChunkSegments, end < all ? end : all};
}

// Row `row` of the part; one that does not exist is the last, whose outputs are not stored.
__device__ __forceinline__ const unsigned char* WeightRowAt(const PackedPart& part, int64_t row) {
  const int64_t exists = row < part.rows ? row : part.rows - 1;
  return static_cast<const unsigned char*>(part.quants) + exists * RowPitch(part.cols) * 2;
}

// Starts the copy of a segment to its place in row `row` of a stage; zeros from a row that is null.
__device__ __forceinline__ void CopySegment(unsigned char* rows, int row, int in_stage,
                                            const unsigned char* from, int64_t segment,
                                            const void* somewhere) {
  CopyAsync16(rows + row * kRowBytes + (in_stage ^ (row % 8)) * 16,
              from != nullptr ? from + segment * 16 : somewhere, from != nullptr ? 16 : 0);
}

// The top of the tree over the shards.
__device__ __forceinline__ float JoinShards(const float (&v)[kMaxShards], int shards) {
  static_assert(kMaxShards == 4);
  if (shards == 1) return v[0];
  const float left = v[0] + v[1];
  if (shards == 2) return left;
  return left + (shards == 3 ? v[2] : v[2] + v[3]);
}

// Address of this lane's row for LoadMatrixX4 of a weight fragment: 16 rows from `row` on, a
// multiple of 8, and one step from `segment` on.
__device__ __forceinline__ const unsigned char* WeightFragment(const unsigned char* rows, int row,
                                                               int segment, int lane) {
  return rows + (row + lane / 8 % 2 * 8 + lane % 8) * kRowBytes +
         ((segment + lane / 16) ^ (lane % 8)) * 16;
}
// The same for activations: 8 tokens, two steps.
__device__ __forceinline__ const unsigned char* TokenFragment(const unsigned char* rows, int token,
                                                              int segment, int lane) {
  return rows + (token + lane % 8) * kRowBytes + ((segment + lane / 8) ^ (lane % 8)) * 16;
}

// Stages of a warp of FewTokens, and of a block of ManyTokens.
template <int kTiles>
inline constexpr int kFewStages = kTiles <= 2 ? 4 : 3;
template <int kTiles>
inline constexpr int kManyStages = kTiles <= 4 ? 4 : 3;

// Shared memory of FewTokens.
template <int kTiles>
constexpr size_t FewTokensBytes(int shards) {
  constexpr int kBytes = kFewStages<kTiles> * (kTileRows + 8 * kTiles) * kRowBytes;
  static_assert(kMaxShards * kBytes <= kMostStageBytes);
  return static_cast<size_t>(shards) * kBytes;
}

// Few tokens: the row tile's outputs for `tokens` <= 8 kTiles tokens, a warp a shard, by a block of
// as many warps as there are shards, with FewTokensBytes of shared memory. x_row(token) is where a
// token's row lies, null if there is none. store(token, row, sum) takes the sum of row `row` of the
// part.
template <int kTiles, class XRow, class Store>
__device__ __forceinline__ void FewTokens(const PackedPart& part, int64_t tile, int64_t tokens,
                                          int shards, int depth, unsigned char* bytes, XRow x_row,
                                          Store store) {
  constexpr int kStages = kFewStages<kTiles>;
  constexpr int kWeightBytes = kTileRows * kRowBytes;
  constexpr int kStageBytes = kWeightBytes + 8 * kTiles * kRowBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int copy_row = lane / 8, copy_segment = lane % 8;  // 8 lanes a row
  unsigned char* const own = bytes + warp * kStages * kStageBytes;
  const ShardRange range = RangeOf(part, warp, depth);
  const int64_t stages = (range.last - range.first + kStageSegments - 1) / kStageSegments;
  const unsigned char* token_rows[2 * kTiles];
#pragma unroll
  for (int c = 0; c < 2 * kTiles; ++c) {
    const int token = 4 * c + copy_row;
    token_rows[c] = token < tokens ? x_row(token) : nullptr;
  }

  const auto load = [&](int64_t stage) {
    if (stage < stages) {
      unsigned char* to = own + stage % kStages * kStageBytes;
      const int64_t segment = range.first + stage * kStageSegments + copy_segment;
#pragma unroll
      for (int c = 0; c < kTileRows / 4; ++c) {
        const int row = 4 * c + copy_row;
        CopySegment(to, row, copy_segment, WeightRowAt(part, tile * kTileRows + row), segment,
                    part.quants);
      }
#pragma unroll
      for (int c = 0; c < 2 * kTiles; ++c) {
        CopySegment(to + kWeightBytes, 4 * c + copy_row, copy_segment, token_rows[c], segment,
                    part.quants);
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
  for (int64_t stage = 0; stage < kStages - 1; ++stage) load(stage);
  for (int64_t stage = 0; stage < stages; ++stage) {
    CopyAsyncWait<kStages - 2>();
    SyncWarp();  // the stage is there for all lanes, and its predecessor's place is free
    load(stage + kStages - 1);
    const unsigned char* from = own + stage % kStages * kStageBytes;
    const int64_t left = range.last - range.first - stage * kStageSegments;
#pragma unroll
    for (int half = 0; half < kStageSegments; half += kGroupSegments) {
      if (half >= left) continue;
      uint32_t x[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        LoadMatrixX4(x[t], TokenFragment(from + kWeightBytes, 8 * t, half, lane));
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t w[4];
          LoadMatrixX4(w, WeightFragment(from, 16 * m, half + step * kStepSegments, lane));
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
    if (row < part.rows) store(token, row, JoinShards(v, shards));
  }
}

inline constexpr int kBlockRows = 128;
inline constexpr int kBlockThreads = 256;

template <int kTiles>
struct TileAccumulators {
  float v[2][kTiles][4];
};

// Shared memory of ManyTokens.
template <int kTiles>
constexpr size_t ManyTokensBytes() {
  constexpr int kBytes = kManyStages<kTiles> * (kBlockRows + 16 * kTiles) * kRowBytes;
  static_assert(kBytes <= kMostStageBytes);
  return kBytes;
}

// Tile `output_tile` of 128 outputs × 16 kTiles tokens, shards [first_shard, last_shard), by a
// block of kBlockThreads threads with ManyTokensBytes of shared memory; warps 4 × 2, each 32
// outputs × 8 kTiles tokens. x_row(token) is where a token's row lies, null if there is none.
// store(token, row, sum) is called for every token of the tile and row of the part.
template <int kTiles, class XRow, class Store>
__device__ __forceinline__ void ManyTokens(const PackedPart& part, int64_t output_tile,
                                           int first_shard, int last_shard, int depth,
                                           unsigned char* bytes, XRow x_row, Store store) {
  constexpr int kStages = kManyStages<kTiles>;
  constexpr int kWeightBytes = kBlockRows * kRowBytes;
  constexpr int kStageBytes = kWeightBytes + 16 * kTiles * kRowBytes;
  constexpr int kCopyRows = kBlockThreads / 8;  // 8 threads a row
  constexpr int kTokenCopies = 16 * kTiles / kCopyRows;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int copy_row = thread / 8, copy_segment = thread % 8;
  const int warp_row = warp % 4 * 32, warp_token = warp / 4 * 8 * kTiles;
  const int64_t first_row = output_tile * kBlockRows;
  const unsigned char* token_rows[kTokenCopies];
#pragma unroll
  for (int c = 0; c < kTokenCopies; ++c) token_rows[c] = x_row(c * kCopyRows + copy_row);

  numerics::TreeStream<TileAccumulators<kTiles>, numerics::kShardDepth> stream(last_shard -
                                                                               first_shard);
  for (int shard = first_shard; shard < last_shard; ++shard) {
    const ShardRange range = RangeOf(part, shard, depth);
    const int64_t stages = (range.last - range.first + kStageSegments - 1) / kStageSegments;
    const auto load = [&](int64_t stage) {
      if (stage < stages) {
        unsigned char* to = bytes + stage % kStages * kStageBytes;
        const int64_t segment = range.first + stage * kStageSegments + copy_segment;
#pragma unroll
        for (int c = 0; c < kBlockRows / kCopyRows; ++c) {
          const int row = c * kCopyRows + copy_row;
          CopySegment(to, row, copy_segment, WeightRowAt(part, first_row + row), segment,
                      part.quants);
        }
#pragma unroll
        for (int c = 0; c < kTokenCopies; ++c) {
          CopySegment(to + kWeightBytes, c * kCopyRows + copy_row, copy_segment, token_rows[c],
                      segment, part.quants);
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
      const int64_t left = range.last - range.first - stage * kStageSegments;
#pragma unroll
      for (int half = 0; half < kStageSegments; half += kGroupSegments) {
        if (half >= left) continue;
        uint32_t w[2][2][4];
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            LoadMatrixX4(w[step][m], WeightFragment(from, warp_row + 16 * m,
                                                    half + step * kStepSegments, lane));
          }
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          uint32_t x[4];
          LoadMatrixX4(x, TokenFragment(from + kWeightBytes, warp_token + 8 * t, half, lane));
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            const uint32_t b[2] = {x[2 * step], x[2 * step + 1]};
#pragma unroll
            for (int m = 0; m < 2; ++m) MmaBf16(sums.v[m][t], w[step][m], b);
          }
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
        const int64_t row = first_row + warp_row + 16 * m + lane / 4 + 8 * (i / 2);
        const int token = warp_token + 8 * t + 2 * (lane % 4) + i % 2;
        if (row < part.rows) store(token, row, sums.v[m][t][i]);
      }
    }
  }
}

}  // namespace verbatim::kernels::cuda::gemm_pinned

// PINNED matrix products of a block on the matrix units: bf16 inputs, fp32 accumulators.
//
// The reduction is cut into shards, nodes of the tree; an output's shard is one chain of
// m16n8k16 instructions in ascending k from +0, and shards join by the tree's top. Two ways with
// that same arithmetic share the work differently: a warp a shard for few tokens, whole tiles with
// the shards one after the other for many.
//
// Outputs are the instruction's 16 rows and tokens its 8 columns, so that few tokens waste little.
// In shared memory weights and activations lie in 16-byte segments of 8 columns, 8 neighbouring
// rows together: what LoadMatrixX4 reads without bank conflicts. Weights are packed that way.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/packed_part.h"
#include "kernels/cuda/tree_nodes.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda::gemm_pinned {

inline constexpr int kSegment = 8;                   // columns of 16 bytes
inline constexpr int kStepSegments = 2;              // of one instruction
inline constexpr int kGroupSegments = 4;             // of 32 columns
inline constexpr int kWeightSegmentBytes = 32 * 16;  // a row tile's
inline constexpr int kTokenSegmentBytes = 8 * 16;    // a token tile's

// Segment `segment` of a row of fp32 values, rounded to bf16; +0 beyond `cols` and for no row.
__device__ __forceinline__ uint4 RoundedSegment(const float* row, int64_t segment, int64_t cols) {
  uint32_t pairs[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    uint32_t pair = 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int64_t column = segment * kSegment + 2 * p + e;
      const bool exists = row != nullptr && column < cols;
      const uint32_t bits = exists ? numerics::Bf16FromFloat(row[column]) : 0u;
      pair |= bits << (16 * e);
    }
    pairs[p] = pair;
  }
  return uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Where a segment is copied from: 16 bytes, or 0 for zeros (from an address that exists).
struct Source {
  const unsigned char* address;
  int bytes;
};

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

inline constexpr int kFewStages = 4;
inline constexpr int kFewSegments = 8;  // 64 columns a stage

// Shared memory of FewTokens.
constexpr size_t FewTokensBytes(int shards, int tiles) {
  return static_cast<size_t>(shards * kFewStages * kFewSegments) *
         static_cast<size_t>(kWeightSegmentBytes + tiles * kTokenSegmentBytes);
}

// Few tokens: the row tile's outputs for `tokens` <= 8 kTiles tokens, a warp a shard, by a block of
// `shards` warps with FewTokensBytes of shared memory. x_segment(t, s, i) is where this lane finds
// segment s of token i of token tile t, i being lane % 8. store(token, row, sum) takes the sum of
// row `row` of the part.
template <int kTiles, class XSegment, class Store>
__device__ __forceinline__ void FewTokens(const PackedPart& part, int64_t tile, int64_t tokens,
                                          int shards, unsigned char* bytes, XSegment x_segment,
                                          Store store) {
  constexpr int kWeightBytes = kFewSegments * kWeightSegmentBytes;
  constexpr int kTileBytes = kFewSegments * kTokenSegmentBytes;
  constexpr int kStageBytes = kWeightBytes + kTiles * kTileBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  unsigned char* const own = bytes + warp * kFewStages * kStageBytes;
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
          const Source from = x_segment(t, first + i / 8, i % 8);
          CopyAsync16(to + kWeightBytes + t * kTileBytes + i * 16, from.address, from.bytes);
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
    if (row < part.rows) store(token, row, JoinShards(v, shards));
  }
}

inline constexpr int kBlockRowTiles = 4;  // 128 outputs
inline constexpr int kBlockThreads = 256;
inline constexpr int kStages = 4;

template <int kTiles>
struct TileAccumulators {
  float v[2][kTiles][4];
};

// Shared memory of ManyTokens.
constexpr size_t ManyTokensBytes(int tiles) {
  return static_cast<size_t>(kStages * kGroupSegments) *
         static_cast<size_t>(kBlockRowTiles * kWeightSegmentBytes + 2 * tiles * kTokenSegmentBytes);
}
// Segments of x that each of its threads copies in a stage.
template <int kTiles>
inline constexpr int kTokenCopies =
    2 * kTiles* kGroupSegments* kTokenSegmentBytes / 16 / kBlockThreads;

// Tile `output_tile` of 128 outputs × 16 kTiles tokens, shards [first_shard, last_shard), by a
// block of kBlockThreads threads with ManyTokensBytes of shared memory; warps 4 × 2, each 32
// outputs × 8 kTiles tokens. x_segment(c, t, s, i) is where this thread finds, as its copy c,
// segment s of token i of token tile t, both the same in every stage. store(token, row, sum) is
// called for every token of the tile and row of the part.
template <int kTiles, class XSegment, class Store>
__device__ __forceinline__ void ManyTokens(const PackedPart& part, int64_t output_tile,
                                           int first_shard, int last_shard, unsigned char* bytes,
                                           XSegment x_segment, Store store) {
  constexpr int kWeightBytes = kBlockRowTiles * kGroupSegments * kWeightSegmentBytes;
  constexpr int kStageBytes = kWeightBytes + 2 * kTiles * kGroupSegments * kTokenSegmentBytes;
  constexpr int kWeightCopies = kWeightBytes / 16 / kBlockThreads;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int warp_row_tile = warp % 4, warp_tile = warp / 4 * kTiles;
  const int64_t first_row_tile = output_tile * kBlockRowTiles;
  const int64_t segments = part.groups() * kGroupSegments;
  const int64_t row_tiles = part.tiles();
  const unsigned char* weights = static_cast<const unsigned char*>(part.quants);

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
#pragma unroll
        for (int c = 0; c < kTokenCopies<kTiles>; ++c) {
          const int i = c * kBlockThreads + thread;  // [token tile][segment][token]
          const Source from =
              x_segment(c, i / (kGroupSegments * 8), segment0 + i / 8 % kGroupSegments, i % 8);
          CopyAsync16(to + kWeightBytes + i * 16, from.address, from.bytes);
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
        const int token = (warp_tile + t) * 8 + 2 * (lane % 4) + i % 2;
        if (row < part.rows) store(token, row, sums.v[m][t][i]);
      }
    }
  }
}

}  // namespace verbatim::kernels::cuda::gemm_pinned

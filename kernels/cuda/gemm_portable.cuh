// PORTABLE matrix products of a block: fp32 FMA leaves of 128 in ascending k, joined by the
// reduction tree.
//
// Two ways with the same bits. Few tokens: a block has 32 outputs, a warp a node of the tree, a
// lane an output, so that weights stream through registers once, 16 bytes a lane; rows of BF16 go
// through shared memory, 128 bytes of each at a time. Many tokens: register tiles over decoded
// weights in shared memory.
#pragma once

#include "kernels/cuda/codecs.cuh"
#include "kernels/cuda/tree_nodes.h"

namespace verbatim::kernels::cuda::gemm_portable {

// Beyond this many tokens decoding each weight once a tile of tokens wins.
inline constexpr int64_t kFewTokens = 16;

inline constexpr int kChunk = static_cast<int>(numerics::kChunkLength);

inline constexpr int kMaxWarps = 16;
inline constexpr int kNodeStack = 24;

// Values of kTokens tokens; a struct so that the tree's stack can hold it.
template <int kTokens>
struct Sums {
  float v[kTokens];
};

// Warps of a block, each a node: as many as shared memory of 96 KiB has room for.
template <DType kFormat>
inline constexpr int kWarps = kFormat == DType::kBF16 ? kMaxWarps / 2 : kMaxWarps;

// Rows of BF16 on their way: two stages of 64 columns of 32 rows. 16-byte segment s of row r lies
// at s ^ (r % 8), so that lanes that read a segment of neighbouring rows meet in no bank.
inline constexpr int kRowStages = 2;
inline constexpr int kRowStageColumns = 64;
inline constexpr int kRowStageBytes = 32 * kRowStageColumns * 2;
template <DType kFormat>
inline constexpr int kRowBytes = kFormat == DType::kBF16 ? kRowStages* kRowStageBytes : 0;

// A warp's own shared memory in FewTokens: a chunk of x while it accumulates, its node's sums
// afterwards; then rows of BF16.
template <DType kFormat, int kTokens>
inline constexpr int kOwnBytes =
    kTokens* kChunk* static_cast<int>(sizeof(float)) + kRowBytes<kFormat>;

// Shared memory of FewTokens.
template <DType kFormat, int kTokens>
constexpr size_t FewTokensBytes(int depth) {
  return (size_t{1} << depth) * static_cast<size_t>(kOwnBytes<kFormat, kTokens>);
}

// A lane's groups of a row tile, in ascending columns from `first` on.
template <DType kFormat>
struct GroupStream {
  const PackedPart& part;
  const int64_t tile;
  const int lane;

  __device__ __forceinline__ GroupStream(const PackedPart& part, int64_t tile, int lane, int64_t,
                                         int64_t, unsigned char*)
      : part(part), tile(tile), lane(lane) {}
  __device__ __forceinline__ typename Codec<kFormat>::Group At(int64_t column) {
    return Codec<kFormat>::Load(part, tile, column / kGroupColumns, lane);
  }
};

template <>
struct GroupStream<DType::kBF16> {
  const PackedPart& part;
  const int64_t tile;
  const int lane;
  const int64_t last;
  unsigned char* const stages;

  // `first` is a multiple of a stage's columns.
  __device__ __forceinline__ GroupStream(const PackedPart& part, int64_t tile, int lane,
                                         int64_t first, int64_t last, unsigned char* stages)
      : part(part), tile(tile), lane(lane), last(last), stages(stages) {
    Start(first);
  }
  __device__ __forceinline__ unsigned char* StageOf(int64_t column) {
    return stages + column / kRowStageColumns % kRowStages * kRowStageBytes;
  }
  // By the whole warp: 8 lanes a row.
  __device__ __forceinline__ void Start(int64_t column) {
    if (column < last) {
      const uint4* weights = static_cast<const uint4*>(part.quants) + column / 8 + lane % 8;
      unsigned char* to = StageOf(column);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int in_tile = 4 * i + lane / 8;
        const int64_t row = tile * kTileRows + in_tile;
        // Rows past the end repeat the last: their outputs are not stored.
        const int64_t exists = row < part.rows ? row : part.rows - 1;
        CopyAsync16(to + in_tile * 128 + ((lane % 8) ^ (in_tile % 8)) * 16,
                    weights + exists * (RowPitch(part.cols) / 8), 16);
      }
    }
    CopyAsyncCommit();
  }
  __device__ __forceinline__ typename Codec<DType::kBF16>::Group At(int64_t column) {
    if (column % kRowStageColumns == 0) {
      SyncWarp();  // the stage before is read
      Start(column + kRowStageColumns);
      CopyAsyncWait<1>();
      SyncWarp();  // this stage is there for all lanes
    }
    typename Codec<DType::kBF16>::Group g;
    const unsigned char* row = StageOf(column) + lane * 128;
    const int segment = static_cast<int>(column % kRowStageColumns / 8);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      g.quants[v] = *reinterpret_cast<const uint4*>(row + ((segment + v) ^ (lane % 8)) * 16);
    }
    return g;
  }
};

// A row tile's outputs for `count` <= kTokens tokens, by a block of 2^depth warps with
// FewTokensBytes of shared memory. x_row(t) is token t's row of x, null for zeros; store(t, row,
// sum) takes the sum of row `row` of the part.
template <DType kFormat, int kTokens, class XRow, class Store>
__device__ __forceinline__ void FewTokens(const PackedPart& part, int64_t tile, int64_t count,
                                          int depth, unsigned char* bytes, XRow x_row,
                                          Store store) {
  using C = Codec<kFormat>;
  constexpr int kOwn = kOwnBytes<kFormat, kTokens>;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float* own = reinterpret_cast<float*>(bytes + warp * kOwn);
  const TreeNode node = NodeAt(warp, depth, numerics::ChunkCount(part.cols));
  const int64_t node_end = (node.first + node.count) * kChunk;
  GroupStream<kFormat> weights(part, tile, lane, node.first * kChunk,
                               part.cols < node_end ? part.cols : node_end,
                               bytes + warp * kOwn + kTokens * kChunk * sizeof(float));

  numerics::TreeStream<Sums<kTokens>, kNodeStack> stream(node.count);
  for (int64_t chunk = node.first; chunk < node.first + node.count; ++chunk) {
    const int64_t k0 = chunk * kChunk;
    SyncWarp();  // all lanes are done with the chunk before
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float* row = t < count ? x_row(t) : nullptr;
#pragma unroll
      for (int i = lane; i < kChunk; i += 32) {
        const bool exists = row != nullptr && k0 + i < part.cols;
        own[t * kChunk + i] = exists ? row[k0 + i] : 0.0f;
      }
    }
    SyncWarp();
    Sums<kTokens> sums;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) sums.v[t] = 0.0f;
    const int64_t last = part.cols < k0 + kChunk ? part.cols : k0 + kChunk;
#pragma unroll 2
    for (int64_t k = k0; k < last; k += kGroupColumns) {
      const typename C::Group g = weights.At(k);
      const float* xs = own + (k - k0);
      if (k + kGroupColumns <= last) {
#pragma unroll
        for (int j = 0; j < kGroupColumns; j += 4) {
          float w[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) w[i] = C::Value(g, j + i);
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            const float4 v = *reinterpret_cast<const float4*>(xs + t * kChunk + j);
            sums.v[t] = Fma(v.x, w[0], sums.v[t]);
            sums.v[t] = Fma(v.y, w[1], sums.v[t]);
            sums.v[t] = Fma(v.z, w[2], sums.v[t]);
            sums.v[t] = Fma(v.w, w[3], sums.v[t]);
          }
        }
      } else {
        // Columns that do not exist take no part: +0 · +0 would turn a sum of −0 into +0.
#pragma unroll
        for (int j = 0; j < kGroupColumns; ++j) {
          if (k + j >= last) continue;
          const float w = C::Value(g, j);
#pragma unroll
          for (int t = 0; t < kTokens; ++t) sums.v[t] = Fma(xs[t * kChunk + j], w, sums.v[t]);
        }
      }
    }
    stream.Push(sums, [](const Sums<kTokens>& left, const Sums<kTokens>& right) {
      Sums<kTokens> sum;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sum.v[t] = left.v[t] + right.v[t];
      return sum;
    });
  }
  SyncWarp();
#pragma unroll
  for (int t = 0; t < kTokens; ++t) own[t * 32 + lane] = stream.Root().v[t];
  SyncThreads();

  // Warps take the tokens in turn and join the nodes, neighbours first.
  const int warps = 1 << depth;
  const int64_t row = tile * kTileRows + lane;
  for (int t = warp; t < count; t += warps) {
    const float* nodes = reinterpret_cast<float*>(bytes) + t * 32 + lane;
    constexpr int kStride = kOwn / static_cast<int>(sizeof(float));
    float v[kMaxWarps];
#pragma unroll
    for (int i = 0; i < kMaxWarps; ++i) v[i] = i < warps ? nodes[i * kStride] : 0.0f;
#pragma unroll
    for (int width = kMaxWarps; width > 1; width /= 2) {
      if (width > warps) continue;
#pragma unroll
      for (int i = 0; i < width / 2; ++i) v[i] = v[2 * i] + v[2 * i + 1];
    }
    if (row < part.rows) store(t, row, v[0]);
  }
}

inline constexpr int kTileTokens = 64;
inline constexpr int kTileOutputs = 128;
inline constexpr int kThreadTokens = 8;
inline constexpr int kThreadOutputs = 4;
inline constexpr int kTileThreads = 256;
inline constexpr int kTokenStride = kTileTokens + 4;  // keeps the transposing stores off one bank
inline constexpr int kTileStack = 12;  // 2^11 chunks: the longest row that LoadMatrix takes

struct TileSums {
  float v[kThreadTokens][kThreadOutputs];
};

inline constexpr size_t kManyTokensBytes =
    static_cast<size_t>(kGroupColumns) * (kTokenStride + kTileOutputs) * sizeof(float);

// Tile `output_tile` of kTileOutputs outputs for `count` <= kTileTokens tokens, by a block of
// kTileThreads threads with kManyTokensBytes of shared memory; x_row and store as above.
template <DType kFormat, class XRow, class Store>
__device__ __forceinline__ void ManyTokens(const PackedPart& part, int64_t output_tile,
                                           int64_t count, unsigned char* bytes, XRow x_row,
                                           Store store) {
  using C = Codec<kFormat>;
  float* xs = reinterpret_cast<float*>(bytes);    // [32 columns][kTokenStride]
  float* ws = xs + kGroupColumns * kTokenStride;  // [32 columns][kTileOutputs]
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_output = output_tile * kTileOutputs;
  const int token0 = thread / 32 * kThreadTokens;
  const int output0 = thread % 32 * kThreadOutputs;

  const int64_t chunks = numerics::ChunkCount(part.cols);
  numerics::TreeStream<TileSums, kTileStack> stream(chunks);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    TileSums sums;
#pragma unroll
    for (int t = 0; t < kThreadTokens; ++t) {
#pragma unroll
      for (int o = 0; o < kThreadOutputs; ++o) sums.v[t][o] = 0.0f;
    }
    const int64_t k0 = chunk * kChunk;
    const int64_t last = part.cols < k0 + kChunk ? part.cols : k0 + kChunk;
    for (int64_t k = k0; k < last; k += kGroupColumns) {
      SyncThreads();  // all threads are done with the group before
      if (thread < kTileOutputs) {
        const int64_t row = first_output + thread;
        if (row < part.rows) {
          const typename C::Group g =
              C::Load(part, row / kTileRows, k / kGroupColumns, static_cast<int>(row % kTileRows));
#pragma unroll
          for (int j = 0; j < kGroupColumns; ++j) ws[j * kTileOutputs + thread] = C::Value(g, j);
        } else {
#pragma unroll
          for (int j = 0; j < kGroupColumns; ++j) ws[j * kTileOutputs + thread] = 0.0f;
        }
      } else {
        const int i = thread - kTileOutputs;
        for (int t = i / 32; t < kTileTokens; t += (kTileThreads - kTileOutputs) / 32) {
          const float* row = t < count ? x_row(t) : nullptr;
          const int64_t column = k + i % 32;
          const bool exists = row != nullptr && column < part.cols;
          xs[i % 32 * kTokenStride + t] = exists ? row[column] : 0.0f;
        }
      }
      SyncThreads();
      const int columns = static_cast<int>(last - k < kGroupColumns ? last - k : kGroupColumns);
#pragma unroll 4
      for (int j = 0; j < columns; ++j) {
        float a[kThreadTokens], b[kThreadOutputs];
#pragma unroll
        for (int t = 0; t < kThreadTokens; t += 4) {
          const float4 v = *reinterpret_cast<const float4*>(xs + j * kTokenStride + token0 + t);
          a[t] = v.x;
          a[t + 1] = v.y;
          a[t + 2] = v.z;
          a[t + 3] = v.w;
        }
        const float4 w = *reinterpret_cast<const float4*>(ws + j * kTileOutputs + output0);
        b[0] = w.x;
        b[1] = w.y;
        b[2] = w.z;
        b[3] = w.w;
#pragma unroll
        for (int t = 0; t < kThreadTokens; ++t) {
#pragma unroll
          for (int o = 0; o < kThreadOutputs; ++o) sums.v[t][o] = Fma(a[t], b[o], sums.v[t][o]);
        }
      }
    }
    stream.Push(sums, [](const TileSums& left, const TileSums& right) {
      TileSums sum;
#pragma unroll
      for (int t = 0; t < kThreadTokens; ++t) {
#pragma unroll
        for (int o = 0; o < kThreadOutputs; ++o) sum.v[t][o] = left.v[t][o] + right.v[t][o];
      }
      return sum;
    });
  }
#pragma unroll
  for (int t = 0; t < kThreadTokens; ++t) {
#pragma unroll
    for (int o = 0; o < kThreadOutputs; ++o) {
      const int64_t row = first_output + output0 + o;
      if (token0 + t < count && row < part.rows) store(token0 + t, row, stream.Root().v[t][o]);
    }
  }
}

}  // namespace verbatim::kernels::cuda::gemm_portable

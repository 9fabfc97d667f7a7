// PINNED matrix products of many tokens in the manner of Hopper: copies of boxes into a pipeline of
// stages by one thread, products of whole warpgroups over them.
//
// The arithmetic is that of gemm_pinned.cuh: an output's shard is one accumulator from +0 that
// takes instructions of 16 columns in ascending k, and shards join by the tree's top. Whether a
// wgmma sums its 16 products as an mma.sync does is the device's affair: this form may only be used
// where the two were seen to give equal bits (pinned_gemm_form.h).
//
// A tile is 128 tokens × kColumns outputs. Tokens are the instruction's rows: two warpgroups have
// 64 each, and both of them all outputs. A stage holds 64 columns of k. The blocks of a cluster of
// kCluster have different tokens and the same outputs, of whose weights each brings an equal part
// to all. Of the tree's pending sums the first stays in registers; the second, which only a fourth
// shard needs, too where there is room, else in shared memory.
#pragma once

#include "kernels/cuda/device_sm90.cuh"
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/packed_part.h"
#include "kernels/cuda/tree_nodes.h"

namespace verbatim::kernels::cuda::gemm_pinned_wgmma {

inline constexpr int kTokens = 128;       // of a tile
inline constexpr int kGroupTokens = 64;   // of a warpgroup
inline constexpr int kStageColumns = 64;  // of k
inline constexpr int kStageRowBytes = 2 * kStageColumns;
inline constexpr int kSteps = kStageColumns / 16;
inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kConsumers = kTokens / kGroupTokens;
inline constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
// Tiles that run at the same time share as few rows of weights and tokens as possible: up to so
// many tiles of tokens take turns before the next outputs.
inline constexpr int kRasterTokenTiles = 16;

// How a tile of kColumns outputs lies in shared memory: from a multiple of 1024 on the stages, each
// tokens then weights; pending sums; the stages' barriers.
template <int kColumns>
struct Layout {
  static constexpr int kSums = kColumns / 2;  // a thread's accumulators
  static constexpr bool kPendingShared = kColumns > 128;
  static constexpr int kStages = kColumns <= 128 ? 6 : 3;
  static constexpr int kTokenBytes = kTokens * kStageRowBytes;
  static constexpr int kStageBytes = kTokenBytes + kColumns * kStageRowBytes;
  static constexpr int kPendingAt = kStages * kStageBytes;
  static constexpr int kPendingBytes = kPendingShared ? kTokens * kColumns * 4 : 0;
  static constexpr int kBarriersAt = kPendingAt + kPendingBytes;
  static constexpr int kAlignment = 1024;
  static constexpr size_t kBytes = kAlignment + kBarriersAt + 2 * kStages * 8;
  static_assert(kBytes <= (227 << 10));
};

struct Product {
  int64_t rows, tokens, cols;
  int64_t first_row;  // in the whole matrix
  Epilogue epilogue;
  bool pairs;       // rows are even, and two neighbouring outputs lie at a multiple of 8 bytes
  float* partials;  // [shards][tokens][rows]: shards are items of their own; null: joined here
  uint32_t* stuck;  // host memory: set when a barrier's phase never ended
  int shards, depth;
  int token_groups;  // of as many tiles as a cluster has blocks
  int output_tiles;

  VERBATIM_HD int items() const {
    return token_groups * output_tiles * (partials != nullptr ? shards : 1);
  }
};

// What a cluster computes at a time.
struct Item {
  int token_group, output_tile;
  int first_shard, last_shard;
};
template <int kCluster>
__device__ __forceinline__ Item ItemAt(const Product& product, int index) {
  constexpr int kRasterGroups = kRasterTokenTiles / kCluster;
  const int tiles = product.token_groups * product.output_tiles;
  Item item;
  item.first_shard = product.partials != nullptr ? index / tiles : 0;
  item.last_shard = product.partials != nullptr ? item.first_shard + 1 : product.shards;
  const int tile = index % tiles;
  const int first = tile / (kRasterGroups * product.output_tiles) * kRasterGroups;
  const int left = product.token_groups - first;
  const int together = left < kRasterGroups ? left : kRasterGroups;
  const int in_raster = tile - first * product.output_tiles;
  item.token_group = first + in_raster % together;
  item.output_tile = in_raster / together;
  return item;
}

// Stages of the columns before shard `shard`: chunks are whole stages, but for the matrix's end.
__device__ __forceinline__ int StagesBefore(const Product& product, int shard) {
  constexpr int kChunkStages = numerics::kChunkLength / kStageColumns;
  const int64_t chunks = numerics::ChunkCount(product.cols);
  const int64_t end = (product.cols + kStageColumns - 1) / kStageColumns;
  const int64_t stages =
      shard == product.shards ? end : ShardAt(shard, chunks, product.depth).first * kChunkStages;
  return static_cast<int>(stages);
}

// A place in the ring of stages, and the parity of its barriers' phase.
template <int kStages>
struct Place {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void WaitOrTrap(uint64_t* barrier, uint32_t parity, uint32_t* stuck) {
  if (WaitForPhase(barrier, parity)) return;
  StoreForHost(stuck, 1);
  Trap();
}

// What a warp says when nothing of it reads the stage any more: to every block that fills it.
template <int kCluster>
__device__ __forceinline__ void Free(uint64_t* empty, int lane) {
  if constexpr (kCluster == 1) {
    if (lane == 0) Arrive(empty);
  } else {
    if (lane < kCluster) ArriveAtRank(empty, static_cast<uint32_t>(lane));
  }
}

// Fills stages as they become free, for all items of the block; one thread.
template <int kColumns, int kCluster>
__device__ __forceinline__ void Produce(const TensorMap& tokens, const TensorMap& weights,
                                        const Product& product, unsigned char* stages,
                                        uint64_t* full, uint64_t* empty) {
  using L = Layout<kColumns>;
  constexpr int kPart = kColumns / kCluster;
  const int rank = kCluster > 1 ? static_cast<int>(ClusterRank()) : 0;
  const int items = product.items();
  Place<L::kStages> place;
  for (int index = static_cast<int>(blockIdx.x) / kCluster; index < items;
       index += static_cast<int>(gridDim.x) / kCluster) {
    const Item item = ItemAt<kCluster>(product, index);
    const int first_token = (item.token_group * kCluster + rank) * kTokens;
    const int end = StagesBefore(product, item.last_shard);
    for (int stage = StagesBefore(product, item.first_shard); stage < end; ++stage) {
      WaitOrTrap(&empty[place.slot], place.parity ^ 1, product.stuck);
      unsigned char* to = stages + place.slot * L::kStageBytes;
      ArriveAndExpect(&full[place.slot], L::kStageBytes);
      LoadBox(to, tokens, stage * kStageColumns, first_token, &full[place.slot]);
      unsigned char* part = to + L::kTokenBytes + rank * kPart * kStageRowBytes;
      const int first_row = item.output_tile * kColumns + rank * kPart;
      if constexpr (kCluster == 1) {
        LoadBox(part, weights, stage * kStageColumns, first_row, &full[place.slot]);
      } else {
        LoadBoxForAll(part, weights, stage * kStageColumns, first_row, &full[place.slot],
                      (1u << kCluster) - 1);
      }
      place.Advance();
    }
  }
}

// The sums of one shard: `stages` stages from the place on.
template <int kColumns, int kCluster>
__device__ __forceinline__ void SumShard(int stages, int group, int lane,
                                         const unsigned char* bytes, uint64_t* full,
                                         uint64_t* empty, uint32_t* stuck,
                                         Place<Layout<kColumns>::kStages>& place,
                                         float (&sums)[kColumns / 2]) {
  using L = Layout<kColumns>;
#pragma unroll
  for (int i = 0; i < L::kSums; ++i) sums[i] = 0.0f;
  int before = -1;  // the slot whose products are under way
  for (int stage = 0; stage < stages; ++stage) {
    WaitOrTrap(&full[place.slot], place.parity, stuck);
    SyncWarp();  // products are by whole warps, however their threads left the wait
    const unsigned char* from = bytes + place.slot * L::kStageBytes;
    const unsigned char* own = from + group * kGroupTokens * kStageRowBytes;
    WgmmaFence(sums);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      WgmmaBf16<kColumns>(sums, SharedMatrix(own, step), SharedMatrix(from + L::kTokenBytes, step));
    }
    WgmmaCommit();
    WgmmaWait<1>();  // the products of the stage before are done
    if (before >= 0) Free<kCluster>(&empty[before], lane);
    before = place.slot;
    place.Advance();
  }
  WgmmaWaitForAll(sums);
  Free<kCluster>(&empty[before], lane);
}

// Two neighbouring values from `at`, the second only if it exists.
template <bool kPairs>
__device__ __forceinline__ float2 LoadPair(const float* at, bool both) {
  if constexpr (kPairs) return *reinterpret_cast<const float2*>(at);
  return float2{at[0], both ? at[1] : 0.0f};
}

// What Epilogue::Store does with the sums of a tile. Everything that a token's outputs need is read
// before the first of them is written, so that reads need not wait for one another.
template <bool kPairs, int kColumns>
__device__ __forceinline__ void StoreTile(const Epilogue& epilogue, int64_t first_column,
                                          int64_t tokens, int64_t rows, int64_t first_token,
                                          int64_t first_row, float (&sums)[kColumns / 2]) {
  constexpr int kCount = kColumns / 8;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t token = first_token + 8 * h;
    if (token >= tokens) continue;
    const auto exists = [&](int j) { return first_row + 8 * j < rows; };
    const auto both = [&](int j) { return kPairs || first_row + 8 * j + 1 < rows; };
    const int64_t column = first_column + first_row, at = token * epilogue.y_stride + column;
    if (epilogue.bias != nullptr) {
      float2 bias[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        bias[j] = float2{0.0f, 0.0f};
        if (exists(j)) bias[j] = LoadPair<false>(epilogue.bias + column + 8 * j, both(j));
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        sums[4 * j + 2 * h] = sums[4 * j + 2 * h] + bias[j].x;
        sums[4 * j + 2 * h + 1] = sums[4 * j + 2 * h + 1] + bias[j].y;
      }
    }
    if (epilogue.residual != nullptr) {
      float2 before[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        before[j] = float2{0.0f, 0.0f};
        if (exists(j)) before[j] = LoadPair<kPairs>(epilogue.residual + at + 8 * j, both(j));
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        sums[4 * j + 2 * h] = before[j].x + sums[4 * j + 2 * h];
        sums[4 * j + 2 * h + 1] = before[j].y + sums[4 * j + 2 * h + 1];
      }
    }
    if (epilogue.round) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        sums[4 * j + 2 * h] = numerics::RoundToBf16(sums[4 * j + 2 * h]);
        sums[4 * j + 2 * h + 1] = numerics::RoundToBf16(sums[4 * j + 2 * h + 1]);
      }
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (!exists(j)) continue;
      const float2 sum{sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]};
      float* to = epilogue.y + at + 8 * j;
      if constexpr (kPairs) {
        *reinterpret_cast<float2*>(to) = sum;
      } else {
        to[0] = sum.x;
        if (both(j)) to[1] = sum.y;
      }
    }
  }
}

// Multiplies what Produce brings, for all items of the block: warpgroup `group` of kConsumers.
template <int kColumns, int kCluster>
__device__ __forceinline__ void Consume(const Product& product, int group, unsigned char* bytes,
                                        uint64_t* full, uint64_t* empty) {
  using L = Layout<kColumns>;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  // [L::kSums][kConsumers * kWarpgroupThreads], a thread's own.
  float* pending =
      reinterpret_cast<float*>(bytes + L::kPendingAt) + group * kWarpgroupThreads + thread;
  constexpr int kPitch = kConsumers * kWarpgroupThreads;
  const int rank = kCluster > 1 ? static_cast<int>(ClusterRank()) : 0;
  const int items = product.items();
  Place<L::kStages> place;
  for (int index = static_cast<int>(blockIdx.x) / kCluster; index < items;
       index += static_cast<int>(gridDim.x) / kCluster) {
    const Item item = ItemAt<kCluster>(product, index);
    const int shards = item.last_shard - item.first_shard;
    float sums[L::kSums], left[L::kSums] = {};
    [[maybe_unused]] float third[L::kPendingShared ? 1 : L::kSums] = {};
    // ((0 + 1) + (2 + 3)), or what there is of it.
    static_assert(kMaxShards == 4);
    for (int shard = 0; shard < shards; ++shard) {
      const int first = StagesBefore(product, item.first_shard + shard);
      const int stages = StagesBefore(product, item.first_shard + shard + 1) - first;
      SumShard<kColumns, kCluster>(stages, group, lane, bytes, full, empty, product.stuck, place,
                                   sums);
      if (shard == 2 && shards == 4) {
#pragma unroll
        for (int i = 0; i < L::kSums; ++i) {
          if constexpr (L::kPendingShared) {
            pending[i * kPitch] = sums[i];
          } else {
            third[i] = sums[i];
          }
        }
        continue;
      }
#pragma unroll
      for (int i = 0; i < L::kSums; ++i) {
        float sum = sums[i];
        if (shard == 3) {
          if constexpr (L::kPendingShared) {
            sum = pending[i * kPitch] + sum;
          } else {
            sum = third[i] + sum;
          }
        }
        left[i] = shard == 0 ? sum : left[i] + sum;
      }
    }
    const int64_t first_token = static_cast<int64_t>(item.token_group * kCluster + rank) * kTokens +
                                group * kGroupTokens + warp * 16 + lane / 4;
    const int64_t first_row = static_cast<int64_t>(item.output_tile) * kColumns + 2 * (lane % 4);
    Epilogue epilogue = product.epilogue;
    int64_t first_column = product.first_row;
    if (product.partials != nullptr) {
      float* partials = product.partials + item.first_shard * product.tokens * product.rows;
      epilogue = {partials, product.rows, nullptr, nullptr, false};
      first_column = 0;
    }
    if (product.pairs) {
      StoreTile<true, kColumns>(epilogue, first_column, product.tokens, product.rows, first_token,
                                first_row, left);
    } else {
      StoreTile<false, kColumns>(epilogue, first_column, product.tokens, product.rows, first_token,
                                 first_row, left);
    }
    SyncWarp();
  }
}

}  // namespace verbatim::kernels::cuda::gemm_pinned_wgmma

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
// kCluster have different tokens and the same outputs, or the other way around, and of what is the
// same each brings an equal part to all. Of the tree's pending sums the first stays in registers;
// the second, which only a fourth shard needs, too where there is room, else in shared memory.
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
inline constexpr size_t kMostSharedBytes = 227 << 10;  // of a block
// Registers of a thread: at launch 65536 / kThreads, rounded down; then shared out anew.
inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;
static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * kWarpgroupThreads <= 65536);
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
  static constexpr int kEnd = kBarriersAt + 2 * kStages * 8;
  static constexpr size_t kBytes = kAlignment + kEnd;
  static_assert(kBytes <= kMostSharedBytes);
};

// What all tiles of a product have in common.
struct Product {
  int64_t rows, cols;
  int shards, depth;
  uint32_t* stuck;  // host memory: set when a barrier's phase never ended
};

// What a block computes at a time: a tile, its first token and output, and shards of the reduction.
// `matrix` is 0 where there is one matrix.
struct Item {
  int first_token, end_token;  // tokens from end_token on are not stored
  int first_row;
  int first_shard, last_shard;
  int matrix;
};

// Where the tile's sums go.
struct Target {
  Epilogue epilogue;
  int64_t first_column;
  bool pairs;  // rows are even, and two neighbouring outputs lie at a multiple of 8 bytes
};

// What Target::pairs is, for the launch.
inline bool StoresPairs(const Target& target, int64_t rows) {
  const auto is_pair = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 8 == 0; };
  const Epilogue& epilogue = target.epilogue;
  return rows % 2 == 0 && epilogue.y_stride % 2 == 0 && target.first_column % 2 == 0 &&
         is_pair(epilogue.y) && is_pair(epilogue.residual);
}

// Tile `index` of so many tiles of tokens (or of clusters' groups of them) and of outputs: up to
// `turns` of the former take turns before the next outputs.
struct RasterPlace {
  int tokens, outputs;
};
__device__ __forceinline__ RasterPlace PlaceInRaster(int index, int token_tiles, int output_tiles,
                                                     int turns) {
  const int first = index / (turns * output_tiles) * turns;
  const int left = token_tiles - first;
  const int together = left < turns ? left : turns;
  const int in_raster = index - first * output_tiles;
  return {first + in_raster % together, in_raster / together};
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

// The items of all blocks are those of a `Work`, which every thread has a copy of:
//   void Prepare(unsigned char* memory)  by the whole block, before a barrier of it; `memory` is
//                                        what lies behind the layout
//   int items()                          of a cluster
//   Item At(int index)                   a cluster's item, as this block of it computes it; indices
//                                        ascend
//   void Begin(const Item&)              before the loads for an item, by the thread that does them
//   void Load(const Item&, int column, unsigned char* to, uint64_t* full)
//                                        brings a stage of this block, with others of its cluster
//   Target TargetOf(const Item&)

// Fills stages as they become free, for all items of the block; one thread.
template <int kColumns, int kCluster, class Work>
__device__ __forceinline__ void Produce(Work work, const Product& product, unsigned char* stages,
                                        uint64_t* full, uint64_t* empty) {
  using L = Layout<kColumns>;
  const int items = work.items();
  Place<L::kStages> place;
  for (int index = static_cast<int>(blockIdx.x) / kCluster; index < items;
       index += static_cast<int>(gridDim.x) / kCluster) {
    const Item item = work.At(index);
    work.Begin(item);
    const int end = StagesBefore(product, item.last_shard);
    for (int stage = StagesBefore(product, item.first_shard); stage < end; ++stage) {
      WaitOrTrap(&empty[place.slot], place.parity ^ 1, product.stuck);
      ArriveAndExpect(&full[place.slot], L::kStageBytes);
      work.Load(item, stage * kStageColumns, stages + place.slot * L::kStageBytes,
                &full[place.slot]);
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
template <int kColumns, int kCluster, class Work>
__device__ __forceinline__ void Consume(Work work, const Product& product, int group,
                                        unsigned char* bytes, uint64_t* full, uint64_t* empty) {
  using L = Layout<kColumns>;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  // [L::kSums][kConsumers * kWarpgroupThreads], a thread's own.
  float* pending =
      reinterpret_cast<float*>(bytes + L::kPendingAt) + group * kWarpgroupThreads + thread;
  constexpr int kPitch = kConsumers * kWarpgroupThreads;
  const int items = work.items();
  Place<L::kStages> place;
  for (int index = static_cast<int>(blockIdx.x) / kCluster; index < items;
       index += static_cast<int>(gridDim.x) / kCluster) {
    const Item item = work.At(index);
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
    const int64_t first_token = item.first_token + group * kGroupTokens + warp * 16 + lane / 4;
    const int64_t first_row = item.first_row + 2 * (lane % 4);
    const Target target = work.TargetOf(item);
    if (target.pairs) {
      StoreTile<true, kColumns>(target.epilogue, target.first_column, item.end_token, product.rows,
                                first_token, first_row, left);
    } else {
      StoreTile<false, kColumns>(target.epilogue, target.first_column, item.end_token, product.rows,
                                 first_token, first_row, left);
    }
    SyncWarp();
  }
}

template <int kCluster>
__device__ __forceinline__ void SyncBlocks() {
  if constexpr (kCluster == 1) {
    SyncThreads();
  } else {
    SyncCluster();
  }
}

// A block of kThreads threads: the last warpgroup's first thread brings what the others multiply.
// `shared` has Layout::kBytes and what the work prepares.
template <int kColumns, int kCluster, class Work>
__device__ __forceinline__ void RunBlock(Work work, const Product& product, unsigned char* shared) {
  using L = Layout<kColumns>;
  unsigned char* const bytes =
      shared + (L::kAlignment - SharedAddress(shared) % L::kAlignment) % L::kAlignment;
  uint64_t* const full = reinterpret_cast<uint64_t*>(bytes + L::kBarriersAt);
  uint64_t* const empty = full + L::kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      InitBarrier(&full[i], 1);
      InitBarrier(&empty[i], kCluster * kConsumers * kWarpgroupThreads / kWarpSize);
    }
    FenceAsyncProxy();
  }
  work.Prepare(bytes + L::kEnd);
  SyncBlocks<kCluster>();
  // By way of a shuffle, so that the compiler sees that a warp's threads have the same.
  const int group = Shuffle(static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0);
  if (group == kConsumers) {
    FewerRegisters<kProducerRegisters>();
    if (threadIdx.x % kWarpgroupThreads == 0) {
      Produce<kColumns, kCluster>(work, product, bytes, full, empty);
    }
    SyncWarp();
    if constexpr (kCluster > 1) SyncCluster();  // others use this block's memory until they end
  } else {
    MoreRegisters<kConsumerRegisters>();
    Consume<kColumns, kCluster>(work, product, group, bytes, full, empty);
    if constexpr (kCluster > 1) SyncCluster();
  }
}

}  // namespace verbatim::kernels::cuda::gemm_pinned_wgmma

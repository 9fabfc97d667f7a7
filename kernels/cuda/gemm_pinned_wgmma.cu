// PINNED matrix products by warpgroups: the tiles of gemm_pinned_wgmma.cuh over a whole matrix.
#include "kernels/cuda/gemm_pinned_wgmma.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_pinned_wgmma;

// Registers of a thread: at launch 65536 / kThreads, rounded down; then shared out anew.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * kWarpgroupThreads <= 65536);

template <int kCluster>
__device__ __forceinline__ void SyncBlocks() {
  if constexpr (kCluster == 1) {
    SyncThreads();
  } else {
    SyncCluster();
  }
}

// The last warpgroup's first thread brings what the others multiply. Where the target is not sm_90a
// there is no such kernel: a trap.
template <int kColumns, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    WgmmaKernel(const __grid_constant__ TensorMap tokens, const __grid_constant__ TensorMap weights,
                const __grid_constant__ Product product) {
#if defined(VERBATIM_SM90A)
  using L = Layout<kColumns>;
  VERBATIM_SHARED_MEMORY(shared);
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
  SyncBlocks<kCluster>();
  // By way of a shuffle, so that the compiler sees that a warp's threads have the same.
  const int group = Shuffle(static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0);
  if (group == kConsumers) {
    FewerRegisters<kProducerRegisters>();
    if (threadIdx.x % kWarpgroupThreads == 0) {
      PrefetchMap(tokens);
      PrefetchMap(weights);
      Produce<kColumns, kCluster>(tokens, weights, product, bytes, full, empty);
    }
    SyncWarp();
    if constexpr (kCluster > 1) SyncCluster();  // others use this block's memory until they end
  } else {
    MoreRegisters<kConsumerRegisters>();
    Consume<kColumns, kCluster>(product, group, bytes, full, empty);
    if constexpr (kCluster > 1) SyncCluster();
  }
#else
  Trap();
#endif
}

// Whether the device runs code with these instructions.
__global__ void ProbeKernel(uint32_t* answer) {
#if defined(VERBATIM_SM90A)
  *answer = 1;
#else
  *answer = 0;
#endif
}

int Blocks(int64_t count, int64_t each) { return static_cast<int>((count + each - 1) / each); }

bool IsPair(const void* address) { return reinterpret_cast<uintptr_t>(address) % 8 == 0; }

template <int kColumns, int kCluster>
int LaunchTiles(const GemmPinnedArgs& args, uint32_t* stuck, Stream stream) {
  using L = Layout<kColumns>;
  const PackedPart& part = args.part;
  const int64_t pitch = RowPitch(part.cols);
  const int shards = ShardCount(numerics::ChunkCount(part.cols), args.shard_depth);
  TensorMap tokens, weights;
  int error = MakeTensorMap(args.rounded_x, pitch, args.tokens, pitch * 2, kTokens, &tokens);
  if (error != 0) return error;
  error = MakeTensorMap(part.quants, pitch, part.rows, pitch * 2, kColumns / kCluster, &weights);
  if (error != 0) return error;
  Product product{.rows = part.rows,
                  .tokens = args.tokens,
                  .cols = part.cols,
                  .first_row = part.first_row,
                  .epilogue = {args.y, args.y_stride, args.bias, args.residual, args.round},
                  .partials = nullptr,
                  .stuck = stuck,
                  .shards = shards,
                  .depth = args.shard_depth,
                  .token_groups = Blocks(args.tokens, kTokens * kCluster),
                  .output_tiles = Blocks(part.rows, kColumns)};
  // Shards get blocks of their own where tiles alone would leave multiprocessors idle.
  const size_t partial_bytes =
      static_cast<size_t>(args.tokens * part.rows) * static_cast<size_t>(shards) * sizeof(float);
  const int clusters = args.multiprocessors > kCluster ? args.multiprocessors / kCluster : 1;
  if (shards > 1 && partial_bytes <= args.partial_bytes && product.items() * 2 <= clusters) {
    product.partials = args.partials;
    product.pairs = part.rows % 2 == 0 && IsPair(args.partials);
  } else {
    product.pairs = part.rows % 2 == 0 && args.y_stride % 2 == 0 && part.first_row % 2 == 0 &&
                    IsPair(args.y) && (args.residual == nullptr || IsPair(args.residual));
  }
  const int used = product.items() < clusters ? product.items() : clusters;
  error = Launch(
      WgmmaKernel<kColumns, kCluster>,
      {dim3(static_cast<unsigned int>(used * kCluster)), dim3(kThreads), L::kBytes, kCluster},
      stream, tokens, weights, product);
  if (error != 0 || product.partials == nullptr) return error;
  return LaunchJoinShards(args, shards, stream);
}

template <int kColumns, int kCluster>
SharedNeed TilesNeed() {
  return {"pinned product by wgmma", FunctionOf(WgmmaKernel<kColumns, kCluster>),
          Layout<kColumns>::kBytes};
}

}  // namespace

SharedNeeds GemmPinnedWgmmaNeeds() {
  return {TilesNeed<128, 1>(), TilesNeed<192, 1>(), TilesNeed<128, 2>(), TilesNeed<192, 2>()};
}

bool WgmmaCanCompute(const PackedPart& part, int64_t tokens) {
  // Groups of 32 columns, which the other form's instructions end with, must be whole stages; and
  // places in matrices and counts of tiles are 32-bit.
  constexpr int64_t kMost = int64_t{1} << 28;
  return part.format == DType::kBF16 && part.rows > 0 && part.rows < kMost && tokens > 0 &&
         tokens < kMost && part.groups() % 2 == 0 &&
         (tokens / kTokens + 2) * (part.rows / 128 + 1) < kMost;
}

int LaunchGemmPinnedWgmma(const GemmPinnedArgs& args, const WgmmaTiles& tiles, uint32_t* stuck,
                          Stream stream) {
  if (tiles.cluster == 1) {
    return tiles.columns == 128 ? LaunchTiles<128, 1>(args, stuck, stream)
                                : LaunchTiles<192, 1>(args, stuck, stream);
  }
  return tiles.columns == 128 ? LaunchTiles<128, 2>(args, stuck, stream)
                              : LaunchTiles<192, 2>(args, stuck, stream);
}

int LaunchWgmmaProbe(uint32_t* answer, Stream stream) {
  return Launch(ProbeKernel, {dim3(1), dim3(kWarpSize), 0}, stream, answer);
}

}  // namespace verbatim::kernels::cuda

// PINNED matrix products by warpgroups: the tiles of gemm_pinned_wgmma.cuh over a whole matrix.
#include "kernels/cuda/gemm_pinned_wgmma.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_pinned_wgmma;

// Registers of a thread: at launch 65536 / kThreads, rounded down; then shared out anew.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;
static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * kWarpgroupThreads <= 65536);

// The last warpgroup's first thread brings what the others multiply. Where the target is not sm_90a
// there is no such kernel: a trap.
template <int kColumns>
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
      InitBarrier(&empty[i], kConsumers * kWarpgroupThreads / kWarpSize);
    }
    FenceAsyncProxy();
  }
  SyncThreads();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroupThreads;
  if (group == kConsumers) {
    FewerRegisters<kProducerRegisters>();
    if (threadIdx.x % kWarpgroupThreads == 0) {
      PrefetchMap(tokens);
      PrefetchMap(weights);
      Produce<kColumns>(tokens, weights, product, bytes, full, empty);
    }
  } else {
    MoreRegisters<kConsumerRegisters>();
    Consume<kColumns>(product, group, bytes, full, empty);
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

template <int kColumns>
int LaunchTiles(const GemmPinnedArgs& args, uint32_t* stuck, Stream stream) {
  using L = Layout<kColumns>;
  const PackedPart& part = args.part;
  const int64_t pitch = RowPitch(part.cols);
  const int shards = ShardCount(numerics::ChunkCount(part.cols), args.shard_depth);
  TensorMap tokens, weights;
  int error = MakeTensorMap(args.rounded_x, pitch, args.tokens, pitch * 2, kTokens, &tokens);
  if (error != 0) return error;
  error = MakeTensorMap(part.quants, pitch, part.rows, pitch * 2, kColumns, &weights);
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
                  .token_tiles = Blocks(args.tokens, kTokens),
                  .output_tiles = Blocks(part.rows, kColumns)};
  // Shards get blocks of their own where tiles alone would leave multiprocessors idle.
  const size_t partial_bytes =
      static_cast<size_t>(args.tokens * part.rows) * static_cast<size_t>(shards) * sizeof(float);
  int items = product.token_tiles * product.output_tiles;
  if (shards > 1 && partial_bytes <= args.partial_bytes && items * 2 <= args.multiprocessors) {
    product.partials = args.partials;
    product.pairs = part.rows % 2 == 0 && IsPair(args.partials);
    items *= shards;
  } else {
    product.pairs = part.rows % 2 == 0 && args.y_stride % 2 == 0 && part.first_row % 2 == 0 &&
                    IsPair(args.y) && (args.residual == nullptr || IsPair(args.residual));
  }
  const int blocks = items < args.multiprocessors ? items : args.multiprocessors;
  error = Launch(WgmmaKernel<kColumns>,
                 {dim3(static_cast<unsigned int>(blocks)), dim3(kThreads), L::kBytes}, stream,
                 tokens, weights, product);
  if (error != 0 || product.partials == nullptr) return error;
  return LaunchJoinShards(args, shards, stream);
}

}  // namespace

bool WgmmaCanCompute(const PackedPart& part, int64_t tokens) {
  // Groups of 32 columns, which the other form's instructions end with, must be whole stages; and
  // counts of tiles are 32-bit.
  constexpr int64_t kMostTiles = int64_t{1} << 28;
  return part.format == DType::kBF16 && part.rows > 0 && tokens > 0 && part.groups() % 2 == 0 &&
         (tokens / kTokens + 1) * (part.rows / 128 + 1) < kMostTiles;
}

int LaunchGemmPinnedWgmma(const GemmPinnedArgs& args, int tile_columns, uint32_t* stuck,
                          Stream stream) {
  if (tile_columns == 128) return LaunchTiles<128>(args, stuck, stream);
  return LaunchTiles<192>(args, stuck, stream);
}

int LaunchWgmmaProbe(uint32_t* answer, Stream stream) {
  return Launch(ProbeKernel, {dim3(1), dim3(kWarpSize), 0}, stream, answer);
}

}  // namespace verbatim::kernels::cuda

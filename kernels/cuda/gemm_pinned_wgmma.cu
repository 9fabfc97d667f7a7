// PINNED matrix products by warpgroups: the tiles of gemm_pinned_wgmma.cuh over a whole matrix.
#include "kernels/cuda/gemm_pinned_wgmma.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_pinned_wgmma;

struct MatrixProduct {
  Product product;
  int64_t tokens;
  Target target;
  float* partials;   // [shards][tokens][rows]: shards are items of their own; null: joined here
  int token_groups;  // of as many tiles as a cluster has blocks
  int output_tiles;

  VERBATIM_HD int items() const {
    return token_groups * output_tiles * (partials != nullptr ? product.shards : 1);
  }
};

// The tiles of one matrix. The blocks of a cluster have different tokens and share weights.
template <int kColumns, int kCluster>
class MatrixWork {
 public:
  __device__ __forceinline__ MatrixWork(const TensorMap& tokens, const TensorMap& weights,
                                        const MatrixProduct& matrix)
      : tokens_(tokens),
        weights_(weights),
        matrix_(matrix),
        rank_(kCluster > 1 ? static_cast<int>(ClusterRank()) : 0) {}

  __device__ __forceinline__ void Prepare(unsigned char*) const {
    if (threadIdx.x == 0) {
      PrefetchMap(tokens_);
      PrefetchMap(weights_);
    }
  }
  __device__ __forceinline__ int items() const { return matrix_.items(); }
  __device__ __forceinline__ Item At(int index) const {
    const int tiles = matrix_.token_groups * matrix_.output_tiles;
    const bool apart = matrix_.partials != nullptr;
    const RasterPlace place = PlaceInRaster(index % tiles, matrix_.token_groups,
                                            matrix_.output_tiles, kRasterTokenTiles / kCluster);
    Item item;
    item.first_token = (place.tokens * kCluster + rank_) * kTokens;
    item.end_token = static_cast<int>(matrix_.tokens);
    item.first_row = place.outputs * kColumns;
    item.first_shard = apart ? index / tiles : 0;
    item.last_shard = apart ? item.first_shard + 1 : matrix_.product.shards;
    item.matrix = 0;
    return item;
  }
  __device__ __forceinline__ void Begin(const Item&) const {}
  __device__ __forceinline__ void Load(const Item& item, int column, unsigned char* to,
                                       uint64_t* full) const {
    constexpr int kPart = kColumns / kCluster;
    LoadBox(to, tokens_, column, item.first_token, full);
    unsigned char* part = to + Layout<kColumns>::kTokenBytes + rank_ * kPart * kStageRowBytes;
    const int first_row = item.first_row + rank_ * kPart;
    if constexpr (kCluster == 1) {
      LoadBox(part, weights_, column, first_row, full);
    } else {
      LoadBoxForAll(part, weights_, column, first_row, full, (1u << kCluster) - 1);
    }
  }
  __device__ __forceinline__ Target TargetOf(const Item& item) const {
    Target target = matrix_.target;
    if (matrix_.partials != nullptr) {
      target.epilogue.y += item.first_shard * matrix_.tokens * matrix_.product.rows;
    }
    return target;
  }

 private:
  const TensorMap& tokens_;
  const TensorMap& weights_;
  const MatrixProduct& matrix_;
  const int rank_;
};

// Where the target is not sm_90a there is no such kernel: a trap.
template <int kColumns, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    WgmmaKernel(const __grid_constant__ TensorMap tokens, const __grid_constant__ TensorMap weights,
                const __grid_constant__ MatrixProduct matrix) {
#if defined(VERBATIM_SM90A)
  VERBATIM_SHARED_MEMORY(shared);
  RunBlock<kColumns, kCluster>(MatrixWork<kColumns, kCluster>(tokens, weights, matrix),
                               matrix.product, shared);
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
  MatrixProduct matrix{
      .product = {.rows = part.rows,
                  .cols = part.cols,
                  .shards = shards,
                  .depth = args.shard_depth,
                  .stuck = stuck},
      .tokens = args.tokens,
      .target = {.epilogue = {args.y, args.y_stride, args.bias, args.residual, args.round},
                 .first_column = part.first_row},
      .token_groups = Blocks(args.tokens, kTokens * kCluster),
      .output_tiles = Blocks(part.rows, kColumns)};
  // Shards get blocks of their own where tiles alone would leave multiprocessors idle.
  const size_t partial_bytes =
      static_cast<size_t>(args.tokens * part.rows) * static_cast<size_t>(shards) * sizeof(float);
  const int clusters = args.multiprocessors > kCluster ? args.multiprocessors / kCluster : 1;
  if (shards > 1 && partial_bytes <= args.partial_bytes && matrix.items() * 2 <= clusters) {
    matrix.partials = args.partials;
    matrix.target = {.epilogue = {args.partials, part.rows, nullptr, nullptr, false}};
  }
  matrix.target.pairs = StoresPairs(matrix.target, part.rows);
  const int used = matrix.items() < clusters ? matrix.items() : clusters;
  error = Launch(
      WgmmaKernel<kColumns, kCluster>,
      {dim3(static_cast<unsigned int>(used * kCluster)), dim3(kThreads), L::kBytes, kCluster},
      stream, tokens, weights, matrix);
  if (error != 0 || matrix.partials == nullptr) return error;
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

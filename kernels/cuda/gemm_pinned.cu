// PINNED matrix products: the tiles of gemm_pinned.cuh over a whole matrix.
//
// A third way for many tokens whose tiles would not fill the device: tiles of single shards, joined
// by a kernel of their own. Activations are packed like weights, so that copies are contiguous.
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_pinned.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_pinned;

constexpr int kPackThreads = 256;

// A thread a token and segment.
__global__ void PackActivationsKernel(PackActivationsArgs args) {
  const int64_t segments = args.groups * kGroupSegments;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (i >= args.token_tiles * segments * 8) return;
  const int64_t tile = i / (segments * 8), segment = i / 8 % segments;
  const int64_t token = tile * 8 + i % 8;
  const float* row = token < args.tokens ? args.x + token * args.x_stride : nullptr;
  static_cast<uint4*>(args.packed)[i] = RoundedSegment(row, segment, args.cols);
}

// Activations from the packed token tile `first_tile` on.
struct PackedX {
  const unsigned char* packed;
  int64_t first_tile, segments;
  __device__ __forceinline__ Source operator()(int tile, int64_t segment, int token) const {
    return {packed + ((first_tile + tile) * segments + segment) * kTokenSegmentBytes + token * 16,
            16};
  }
  __device__ __forceinline__ Source operator()(int, int tile, int64_t segment, int token) const {
    return (*this)(tile, segment, token);
  }
};

// grid (row tiles).
template <int kTiles>
__global__ void __launch_bounds__(kMaxShards * 32)
    FewTokensKernel(PackedPart part, int64_t tokens, const unsigned char* packed_x,
                    Epilogue epilogue, int shards) {
  VERBATIM_SHARED_MEMORY(bytes);
  FewTokens<kTiles>(part, blockIdx.x, tokens, shards, bytes,
                    PackedX{packed_x, 0, part.groups() * kGroupSegments},
                    [&](int64_t token, int64_t row, float sum) {
                      epilogue.Store(token, part.first_row + row, sum);
                    });
}

// grid (output tiles, token tiles, shards or 1). With partials: [shards][tokens][rows].
template <int kTiles>
__global__ void __launch_bounds__(kBlockThreads)
    ManyTokensKernel(PackedPart part, int64_t tokens, const unsigned char* packed_x,
                     Epilogue epilogue, float* partials, int shards) {
  VERBATIM_SHARED_MEMORY(bytes);
  const int64_t first_tile = static_cast<int64_t>(blockIdx.y) * 2 * kTiles;
  const int first_shard = partials != nullptr ? static_cast<int>(blockIdx.z) : 0;
  const int last_shard = partials != nullptr ? first_shard + 1 : shards;
  ManyTokens<kTiles>(part, blockIdx.x, first_shard, last_shard, bytes,
                     PackedX{packed_x, first_tile, part.groups() * kGroupSegments},
                     [&](int in_tile, int64_t row, float sum) {
                       const int64_t token = first_tile * 8 + in_tile;
                       if (token >= tokens) return;
                       if (partials != nullptr) {
                         partials[(first_shard * tokens + token) * part.rows + row] = sum;
                       } else {
                         epilogue.Store(token, part.first_row + row, sum);
                       }
                     });
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
  return Launch(FewTokensKernel<kTiles>,
                {dim3(static_cast<unsigned int>(args.part.tiles())), dim3(warps * 32),
                 FewTokensBytes(shards, kTiles)},
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
  float* partials = split ? args.partials : nullptr;
  const int error =
      Launch(ManyTokensKernel<kTiles>,
             {dim3(output_tiles, token_tiles, split ? static_cast<unsigned int>(shards) : 1),
              dim3(kBlockThreads), ManyTokensBytes(kTiles)},
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

// PINNED matrix products: the tiles of gemm_pinned.cuh over a whole matrix.
//
// A third way for many tokens whose tiles would not fill the device: tiles of single shards, joined
// by a kernel of their own.
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_pinned.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_pinned;

// Rounded activations from token `first` on.
struct RoundedX {
  const unsigned char* rounded;
  int64_t row_bytes, first, tokens;
  __device__ __forceinline__ const unsigned char* operator()(int token) const {
    return first + token < tokens ? rounded + (first + token) * row_bytes : nullptr;
  }
};

// grid (row tiles).
template <int kTiles>
__global__ void __launch_bounds__(kMaxShards * 32)
    FewTokensKernel(PackedPart part, int64_t tokens, const unsigned char* rounded_x,
                    Epilogue epilogue, int shards, int depth) {
  VERBATIM_SHARED_MEMORY(bytes);
  FewTokens<kTiles>(part, blockIdx.x, tokens, shards, depth, bytes,
                    RoundedX{rounded_x, RowPitch(part.cols) * 2, 0, tokens},
                    [&](int64_t token, int64_t row, float sum) {
                      epilogue.Store(token, part.first_row + row, sum);
                    });
}

// Token tiles whose blocks run side by side: weights that they share are read from memory once.
constexpr unsigned int kTokenTileGroup = 16;

// grid (output tiles, token tiles, shards or 1). With partials: [shards][tokens][rows].
template <int kTiles>
__global__ void __launch_bounds__(kBlockThreads, 2)
    ManyTokensKernel(PackedPart part, int64_t tokens, const unsigned char* rounded_x,
                     Epilogue epilogue, float* partials, int shards, int depth) {
  VERBATIM_SHARED_MEMORY(bytes);
  const unsigned int block = blockIdx.y * gridDim.x + blockIdx.x;
  const unsigned int group = block / (kTokenTileGroup * gridDim.x) * kTokenTileGroup;
  const unsigned int in_group = block - group * gridDim.x;
  const unsigned int left = gridDim.y - group;
  const unsigned int width = left < kTokenTileGroup ? left : kTokenTileGroup;
  const int64_t first_token = static_cast<int64_t>(group + in_group % width) * 16 * kTiles;
  const int first_shard = partials != nullptr ? static_cast<int>(blockIdx.z) : 0;
  const int last_shard = partials != nullptr ? first_shard + 1 : shards;
  ManyTokens<kTiles>(part, in_group / width, first_shard, last_shard, depth, bytes,
                     RoundedX{rounded_x, RowPitch(part.cols) * 2, first_token, tokens},
                     [&](int in_tile, int64_t row, float sum) {
                       const int64_t token = first_token + in_tile;
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
                 FewTokensBytes<kTiles>(shards)},
                stream, args.part, args.tokens, static_cast<const unsigned char*>(args.rounded_x),
                epilogue, shards, args.shard_depth);
}

template <int kTiles>
int LaunchMany(const GemmPinnedArgs& args, const Epilogue& epilogue, int shards, Stream stream) {
  const unsigned int output_tiles = Blocks(args.part.rows, kBlockRows);
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
              dim3(kBlockThreads), ManyTokensBytes<kTiles>()},
             stream, args.part, args.tokens, static_cast<const unsigned char*>(args.rounded_x),
             epilogue, partials, shards, args.shard_depth);
  if (error != 0 || !split) return error;
  return LaunchJoinShards(args, shards, stream);
}

template <int kTiles>
SharedNeed FewNeed() {
  return {"pinned product of few tokens", FunctionOf(FewTokensKernel<kTiles>),
          FewTokensBytes<kTiles>(kMaxShards)};
}
template <int kTiles>
SharedNeed ManyNeed() {
  return {"pinned product of many tokens", FunctionOf(ManyTokensKernel<kTiles>),
          ManyTokensBytes<kTiles>()};
}

}  // namespace

SharedNeeds GemmPinnedNeeds() {
  return {FewNeed<1>(), FewNeed<2>(), FewNeed<4>(), ManyNeed<4>(), ManyNeed<8>()};
}

int LaunchJoinShards(const GemmPinnedArgs& args, int shards, Stream stream) {
  const Epilogue epilogue{args.y, args.y_stride, args.bias, args.residual, args.round};
  return Launch(JoinShardsKernel,
                {dim3(Blocks(args.part.rows, kJoinThreads), static_cast<unsigned int>(args.tokens)),
                 dim3(kJoinThreads), 0},
                stream, args.partials, args.tokens, args.part.rows, args.part.first_row, epilogue,
                shards);
}

int LaunchGemmPinned(const GemmPinnedArgs& args, Stream stream) {
  const Epilogue epilogue{args.y, args.y_stride, args.bias, args.residual, args.round};
  const int shards = ShardCount(numerics::ChunkCount(args.part.cols), args.shard_depth);
  if (args.tokens <= 8) return LaunchFew<1>(args, epilogue, shards, stream);
  if (args.tokens <= 16) return LaunchFew<2>(args, epilogue, shards, stream);
  if (args.tokens <= 32) return LaunchFew<4>(args, epilogue, shards, stream);
  if (args.tokens <= 64) return LaunchMany<4>(args, epilogue, shards, stream);
  return LaunchMany<8>(args, epilogue, shards, stream);
}

}  // namespace verbatim::kernels::cuda

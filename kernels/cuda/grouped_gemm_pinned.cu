// PINNED products of a mixture's experts: the tiles of gemm_pinned.cuh over each expert's places.
//
// Activations are rounded to bf16 row by row and gathered by index while they are copied to shared
// memory.
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_pinned.cuh"
#include "kernels/cuda/grouped_places.cuh"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_pinned;

constexpr int64_t kIdleRowTiles = 4;
constexpr int kRoundThreads = 256;

// A thread a row and segment.
__global__ void RoundRowsKernel(RoundRowsArgs args) {
  const int64_t segments = RowPitch(args.cols) / kSegment;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRoundThreads + threadIdx.x;
  if (i >= args.num_rows * segments) return;
  const int64_t place = args.first_row + i / segments;
  // Rows of unused places are not to be looked at.
  const bool gathers = args.places.rows != nullptr;
  const bool exists = !gathers || place < args.places.offsets[args.places.num_experts];
  const int64_t row = exists ? RowAt(args.places, static_cast<int32_t>(place)) : -1;
  if (gathers && exists && row < 0) AtomicOr(args.places.fault, kFaultPlace);
  static_cast<uint4*>(args.rounded)[i] =
      RoundedSegment(row >= 0 ? args.x + row * args.x_stride : nullptr, i % segments, args.cols);
}

// Where the rounded rows of a tile's places begin; null if a place has none.
struct PlaceX {
  const GroupedGemmArgs& args;
  const PlaceTile& tile;
  int64_t row_bytes;
  __device__ __forceinline__ const unsigned char* operator()(int place) const {
    if (place >= tile.count) return nullptr;
    const int64_t row = RowAt(args.places, tile.first + place);
    return row >= 0 ? static_cast<const unsigned char*>(args.rounded_x) +
                          (row - args.rounded_first) * row_bytes
                    : nullptr;
  }
};

template <int kTiles>
__device__ __forceinline__ void FewPlaces(const GroupedGemmArgs& args, const PlaceTile& tile,
                                          const PackedPart& part, const Epilogue& epilogue,
                                          int64_t row_tile, int shards, unsigned char* bytes) {
  FewTokens<kTiles>(part, row_tile, tile.count, shards, args.shard_depth, bytes,
                    PlaceX{args, tile, RowPitch(part.cols) * 2},
                    [&](int64_t token, int64_t row, float sum) {
                      epilogue.Store(tile.first + token, part.first_row + row, sum);
                    });
}

// Experts with up to kFewPlaces places. grid (row tiles or fewer, experts with places); a warp a
// shard.
template <int kMostTiles>
__global__ void __launch_bounds__(kMaxShards * 32)
    FewPlacesKernel(GroupedGemmArgs args, int shards) {
  VERBATIM_SHARED_MEMORY(bytes);
  if (blockIdx.x == 0 && blockIdx.y == 0) CheckPlaces(args.places, 32 * shards);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const PlaceTile tile = FindTile(args.places, 0, 8 * kMostTiles, 8 * kMostTiles,
                                  static_cast<int32_t>(blockIdx.y), lane);
  if (tile.count == 0) return;
  const PackedPart part = args.parts[tile.expert];
  const Epilogue epilogue{args.y, args.y_stride, nullptr, nullptr, args.round};
  for (int64_t row_tile = blockIdx.x; row_tile < part.tiles(); row_tile += gridDim.x) {
    if (row_tile > blockIdx.x) SyncThreads();  // all warps have read the sums before
    if (kMostTiles == 1 || tile.count <= 8) {
      FewPlaces<1>(args, tile, part, epilogue, row_tile, shards, bytes);
    } else if (kMostTiles == 2 || tile.count <= 16) {
      FewPlaces < kMostTiles<2 ? 1 : 2>(args, tile, part, epilogue, row_tile, shards, bytes);
    } else {
      FewPlaces<kMostTiles>(args, tile, part, epilogue, row_tile, shards, bytes);
    }
  }
}

// Experts with more. grid (output tiles, tiles of places).
template <int kTiles>
__global__ void __launch_bounds__(kBlockThreads, 2)
    ManyPlacesKernel(GroupedGemmArgs args, int shards) {
  VERBATIM_SHARED_MEMORY(bytes);
  const int thread = static_cast<int>(threadIdx.x);
  const PlaceTile tile = FindTile(args.places, kFewPlaces, INT32_MAX, 16 * kTiles,
                                  static_cast<int32_t>(blockIdx.y), thread % 32);
  if (tile.count == 0) return;
  const PackedPart part = args.parts[tile.expert];
  if (static_cast<int64_t>(blockIdx.x) * kBlockRows >= part.rows) return;
  const Epilogue epilogue{args.y, args.y_stride, nullptr, nullptr, args.round};
  ManyTokens<kTiles>(part, blockIdx.x, 0, shards, args.shard_depth, bytes,
                     PlaceX{args, tile, RowPitch(part.cols) * 2},
                     [&](int token, int64_t row, float sum) {
                       if (token < tile.count)
                         epilogue.Store(tile.first + token, part.first_row + row, sum);
                     });
}

unsigned int Blocks(int64_t count, int64_t each) {
  return static_cast<unsigned int>((count + each - 1) / each);
}

template <int kMostTiles>
int LaunchFewPlaces(const GroupedGemmArgs& args, int shards, Stream stream) {
  // Where the average expert has more places than this kernel takes, most blocks find none.
  const int64_t count = args.places.end - args.places.begin;
  const int64_t row_tiles = (args.most_rows + kTileRows - 1) / kTileRows;
  const bool most_idle = count > kFewPlaces * args.places.num_experts && row_tiles > kIdleRowTiles;
  return Launch(FewPlacesKernel<kMostTiles>,
                {dim3(static_cast<unsigned int>(most_idle ? kIdleRowTiles : row_tiles),
                      TileBound(args.places, 0, INT32_MAX)),
                 dim3(static_cast<unsigned int>(shards) * 32), FewTokensBytes<kMostTiles>(shards)},
                stream, args, shards);
}

template <int kTiles>
int LaunchManyPlaces(const GroupedGemmArgs& args, int shards, Stream stream) {
  return Launch(
      ManyPlacesKernel<kTiles>,
      {dim3(Blocks(args.most_rows, kBlockRows), TileBound(args.places, kFewPlaces, 16 * kTiles)),
       dim3(kBlockThreads), ManyTokensBytes<kTiles>()},
      stream, args, shards);
}

template <int kMostTiles>
SharedNeed FewNeed() {
  return {"pinned grouped product of few tokens", FunctionOf(FewPlacesKernel<kMostTiles>),
          FewTokensBytes<kMostTiles>(kMaxShards)};
}
template <int kTiles>
SharedNeed ManyNeed() {
  return {"pinned grouped product of many tokens", FunctionOf(ManyPlacesKernel<kTiles>),
          ManyTokensBytes<kTiles>()};
}

}  // namespace

SharedNeeds GroupedGemmPinnedNeeds() {
  return {FewNeed<1>(), FewNeed<2>(), FewNeed<4>(), ManyNeed<4>(), ManyNeed<8>()};
}

int LaunchRoundRows(const RoundRowsArgs& args, Stream stream) {
  return Launch(RoundRowsKernel,
                {dim3(Blocks(args.num_rows * RowPitch(args.cols) / kSegment, kRoundThreads)),
                 dim3(kRoundThreads), 0},
                stream, args);
}

int LaunchGroupedGemmFewPlaces(const GroupedGemmArgs& args, Stream stream) {
  const int shards = ShardCount(numerics::ChunkCount(args.cols), args.shard_depth);
  const int64_t count = args.places.end - args.places.begin;
  if (count <= 8) return LaunchFewPlaces<1>(args, shards, stream);
  if (count <= 16) return LaunchFewPlaces<2>(args, shards, stream);
  return LaunchFewPlaces<4>(args, shards, stream);
}

int LaunchGroupedGemmPinned(const GroupedGemmArgs& args, Stream stream) {
  const int shards = ShardCount(numerics::ChunkCount(args.cols), args.shard_depth);
  const int64_t count = args.places.end - args.places.begin;
  const int error = LaunchGroupedGemmFewPlaces(args, stream);
  if (error != 0 || count <= kFewPlaces) return error;
  // Tiles as long as an expert's share.
  if (count <= 64 * args.places.num_experts) return LaunchManyPlaces<4>(args, shards, stream);
  return LaunchManyPlaces<8>(args, shards, stream);
}

}  // namespace verbatim::kernels::cuda

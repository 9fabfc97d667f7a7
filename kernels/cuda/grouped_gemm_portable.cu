// PORTABLE products of a mixture's experts: the tiles of gemm_portable.cuh over each expert's
// places.
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_portable.cuh"
#include "kernels/cuda/grouped_places.cuh"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_portable;

struct PlaceRows {
  const GroupedGemmArgs& args;
  int32_t first;
  __device__ __forceinline__ const float* operator()(int t) const {
    const int64_t row = RowAt(args.places, first + t);
    return row >= 0 ? args.x + row * args.x_stride : nullptr;
  }
};
struct PlaceStore {
  Epilogue epilogue;
  int64_t first, first_row;
  __device__ __forceinline__ void operator()(int t, int64_t row, float sum) const {
    epilogue.Store(first + t, first_row + row, sum);
  }
};
__device__ __forceinline__ PlaceStore StoreAt(const GroupedGemmArgs& args, int64_t first,
                                              int64_t first_row) {
  return {{args.y, args.y_stride, nullptr, nullptr, args.round}, first, first_row};
}

// Experts with up to kFewTokens places, kTokens at a time. grid (row tiles, experts with places);
// 2^depth warps.
template <DType kFormat, int kTokens>
__global__ void __launch_bounds__(kWarps<kFormat> * 32)
    FewPlacesKernel(GroupedGemmArgs args, int depth) {
  VERBATIM_SHARED_MEMORY(bytes);
  if (blockIdx.x == 0 && blockIdx.y == 0) CheckPlaces(args.places, 32 << depth);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const PlaceTile tile =
      FindTile(args.places, 0, kFewTokens, kFewTokens, static_cast<int32_t>(blockIdx.y), lane);
  if (tile.count == 0) return;
  const PackedPart part = args.parts[tile.expert];
  if (static_cast<int64_t>(blockIdx.x) >= part.tiles()) return;
  for (int32_t done = 0; done < tile.count; done += kTokens) {
    if (done > 0) SyncThreads();  // all warps are done with the nodes before
    const int32_t left = tile.count - done, first = tile.first + done;
    FewTokens<kFormat, kTokens>(part, blockIdx.x, left < kTokens ? left : kTokens, depth, bytes,
                                PlaceRows{args, first}, StoreAt(args, first, part.first_row));
  }
}

// Experts with more. grid (output tiles, tiles of places).
template <DType kFormat>
__global__ void __launch_bounds__(kTileThreads) ManyPlacesKernel(GroupedGemmArgs args) {
  VERBATIM_SHARED_MEMORY(bytes);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const PlaceTile tile = FindTile(args.places, kFewTokens, INT32_MAX, kTileTokens,
                                  static_cast<int32_t>(blockIdx.y), lane);
  if (tile.count == 0) return;
  const PackedPart part = args.parts[tile.expert];
  if (static_cast<int64_t>(blockIdx.x) * kTileOutputs >= part.rows) return;
  ManyTokens<kFormat>(part, blockIdx.x, tile.count, bytes, PlaceRows{args, tile.first},
                      StoreAt(args, tile.first, part.first_row));
}

template <DType kFormat, int kTokens>
int LaunchFewPlaces(const GroupedGemmArgs& args, Stream stream) {
  const int depth = DepthFor(kWarps<kFormat>, numerics::ChunkCount(args.cols));
  return Launch(FewPlacesKernel<kFormat, kTokens>,
                {dim3(static_cast<unsigned int>((args.most_rows + kTileRows - 1) / kTileRows),
                      TileBound(args.places, 0, INT32_MAX)),
                 dim3(32u << depth), FewTokensBytes<kFormat, kTokens>(depth)},
                stream, args, depth);
}

template <DType kFormat, int kTokens>
SharedNeed FewPlacesNeed() {
  return {"portable grouped product of few tokens", FunctionOf(FewPlacesKernel<kFormat, kTokens>),
          kWarps<kFormat> * static_cast<size_t>(kOwnBytes<kFormat, kTokens>)};
}

}  // namespace

SharedNeeds GroupedGemmPortableNeeds() {
  SharedNeeds needs;
  for (int format = 0; format <= static_cast<int>(DType::kQ6_K); ++format) {
    ForFormat(static_cast<DType>(format), [&]<DType kFormat>() {
      needs.insert(needs.end(), {FewPlacesNeed<kFormat, 1>(), FewPlacesNeed<kFormat, 4>()});
    });
  }
  return needs;
}

int LaunchGroupedGemmPortable(const GroupedGemmArgs& args, Stream stream) {
  const int64_t count = args.places.end - args.places.begin;
  return ForFormat(args.format, [&]<DType kFormat>() {
    // One place an expert is what a single token gives.
    const int error = count <= args.places.num_experts ? LaunchFewPlaces<kFormat, 1>(args, stream)
                                                       : LaunchFewPlaces<kFormat, 4>(args, stream);
    if (error != 0 || count <= kFewTokens) return error;
    return Launch(
        ManyPlacesKernel<kFormat>,
        {dim3(static_cast<unsigned int>((args.most_rows + kTileOutputs - 1) / kTileOutputs),
              TileBound(args.places, kFewTokens, kTileTokens)),
         dim3(kTileThreads), kManyTokensBytes},
        stream, args);
  });
}

}  // namespace verbatim::kernels::cuda

// PINNED products of a mixture's experts by warpgroups: the tiles of gemm_pinned_wgmma.cuh over
// each expert's places.
//
// An expert's rounded rows follow one another, so that a tile of them is a box like any other's:
// its last rows may be another expert's, or nobody's, and are not stored. Weights come by a map an
// expert. The blocks of a cluster have neighbouring outputs and the same places: how many tiles of
// places an expert has is nobody's choice, and often odd, while its outputs fill whole clusters.
#include "kernels/cuda/gemm_pinned_wgmma.cuh"
#include "kernels/cuda/grouped_places.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_memory.h"
#include "kernels/ops/moe.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_pinned_wgmma;

static_assert(sizeof(TensorMap) <= kWeightMapBytes);

constexpr int kMapRows = 64;  // of a box of weights: parts of a tile of any width

struct ExpertsProduct {
  Product product;
  GroupedPlaces places;
  const unsigned char* maps;
  int rounded_first;  // the place of the first rounded row
  int most_tiles;     // of places
  int output_groups;  // of as many tiles as a cluster has blocks
  Target target;
};

// Shared memory of tables: tiles before each expert, and before the end.
size_t TableBytes(int64_t num_experts) {
  return static_cast<size_t>(num_experts + 1) * sizeof(int32_t);
}

template <int kColumns, int kCluster>
class ExpertsWork {
 public:
  __device__ __forceinline__ ExpertsWork(const TensorMap& tokens, const ExpertsProduct& experts)
      : tokens_(tokens),
        experts_(experts),
        rank_(kCluster > 1 ? static_cast<int>(ClusterRank()) : 0) {}

  // Counts the tiles of experts that have more than a few places; the first warp does.
  __device__ __forceinline__ void Prepare(unsigned char* memory) {
    int32_t* const before = reinterpret_cast<int32_t*>(memory);
    before_ = before;
    if (threadIdx.x >= kWarpSize) return;
    const int lane = static_cast<int>(threadIdx.x);
    if (lane == 0) {
      PrefetchMap(tokens_);
      before[0] = 0;
    }
    const int32_t num_experts = static_cast<int32_t>(experts_.places.num_experts);
    int32_t sum = 0;
    for (int32_t base = 0; base < num_experts; base += kWarpSize) {
      const int32_t expert = base + lane;
      const int32_t count = expert < num_experts ? PlacesOf(experts_.places, expert).count : 0;
      const int32_t tiles = count > kFewPlaces ? (count + kTokens - 1) / kTokens : 0;
      const int32_t through = SumThrough(tiles, lane);
      // Offsets that do not ascend could have it that there are more tiles than places.
      const int32_t all = sum + through;
      if (expert < num_experts) {
        before[expert + 1] = all < experts_.most_tiles ? all : experts_.most_tiles;
      }
      sum += Shuffle(through, kWarpSize - 1);
    }
  }
  __device__ __forceinline__ int items() const {
    return before_[experts_.places.num_experts] * experts_.output_groups;
  }
  __device__ __forceinline__ Item At(int index) {
    while (index >= before_[expert_ + 1] * experts_.output_groups) ++expert_;
    const int before = before_[expert_];
    const RasterPlace place =
        PlaceInRaster(index - before * experts_.output_groups, before_[expert_ + 1] - before,
                      experts_.output_groups, kRasterTokenTiles);
    const PlaceTile places = PlacesOf(experts_.places, expert_);
    Item item;
    item.first_token = places.first + place.tokens * kTokens;
    item.end_token = places.first + places.count;
    item.first_row = (place.outputs * kCluster + rank_) * kColumns;
    item.first_shard = 0;
    item.last_shard = experts_.product.shards;
    item.matrix = expert_;
    return item;
  }
  __device__ __forceinline__ void Begin(const Item& item) {
    if (item.matrix == of_weights_) return;
    of_weights_ = item.matrix;
    weights_ = &AcquireMap(experts_.maps + item.matrix * kWeightMapBytes);
  }
  __device__ __forceinline__ void Load(const Item& item, int column, unsigned char* to,
                                       uint64_t* full) const {
    constexpr int kPart = kTokens / kCluster;
    unsigned char* part = to + rank_ * kPart * kStageRowBytes;
    const int first_row = item.first_token - experts_.rounded_first + rank_ * kPart;
    if constexpr (kCluster == 1) {
      LoadBox(part, tokens_, column, first_row, full);
    } else {
      LoadBoxForAll(part, tokens_, column, first_row, full, (1u << kCluster) - 1);
    }
#pragma unroll
    for (int row = 0; row < kColumns; row += kMapRows) {
      LoadBox(to + Layout<kColumns>::kTokenBytes + row * kStageRowBytes, *weights_, column,
              item.first_row + row, full);
    }
  }
  __device__ __forceinline__ const Target& TargetOf(const Item&) const { return experts_.target; }

 private:
  const TensorMap& tokens_;
  const ExpertsProduct& experts_;
  const int rank_;
  const int32_t* before_ = nullptr;  // [experts + 1]
  int expert_ = 0;                   // of the last item
  int of_weights_ = -1;
  const TensorMap* weights_ = nullptr;  // of the item that was begun last
};

// Where the target is not sm_90a there is no such kernel: a trap.
template <int kColumns, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    GroupedWgmmaKernel(const __grid_constant__ TensorMap tokens,
                       const __grid_constant__ ExpertsProduct experts) {
#if defined(VERBATIM_SM90A)
  VERBATIM_SHARED_MEMORY(shared);
  RunBlock<kColumns, kCluster>(ExpertsWork<kColumns, kCluster>(tokens, experts), experts.product,
                               shared);
#else
  Trap();
#endif
}

int64_t Blocks(int64_t count, int64_t each) { return (count + each - 1) / each; }

// Rounded rows that may be read.
int64_t RoundedRows(const GroupedGemmArgs& args) {
  const GroupedPlaces& places = args.places;
  return (places.end < places.x_rows ? places.end : places.x_rows) - args.rounded_first;
}

template <int kColumns, int kCluster>
int LaunchTiles(const GroupedGemmArgs& args, int multiprocessors, uint32_t* stuck, Stream stream) {
  const int64_t pitch = RowPitch(args.cols);
  TensorMap tokens;
  int error = MakeTensorMap(args.rounded_x, pitch, RoundedRows(args), pitch * 2, kTokens / kCluster,
                            &tokens);
  if (error != 0) return error;
  ExpertsProduct experts{
      .product = {.rows = args.most_rows,
                  .cols = args.cols,
                  .shards = ShardCount(numerics::ChunkCount(args.cols), args.shard_depth),
                  .depth = args.shard_depth,
                  .stuck = stuck},
      .places = args.places,
      .maps = static_cast<const unsigned char*>(args.maps),
      .rounded_first = static_cast<int>(args.rounded_first),
      .most_tiles = static_cast<int>(TileBound(args.places, kFewPlaces, kTokens)),
      .output_groups = static_cast<int>(Blocks(args.most_rows, kColumns * kCluster)),
      .target = {.epilogue = {args.y, args.y_stride, nullptr, nullptr, args.round}}};
  experts.target.pairs = StoresPairs(experts.target, args.most_rows);
  const int clusters = multiprocessors > kCluster ? multiprocessors / kCluster : 1;
  const int items = experts.most_tiles * experts.output_groups;
  const int used = items < clusters ? items : clusters;
  static_assert(Layout<kColumns>::kBytes + (kMaxExperts + 1) * sizeof(int32_t) <= kMostSharedBytes);
  return Launch(GroupedWgmmaKernel<kColumns, kCluster>,
                {dim3(static_cast<unsigned int>(used * kCluster)), dim3(kThreads),
                 Layout<kColumns>::kBytes + TableBytes(args.places.num_experts), kCluster},
                stream, tokens, experts);
}

template <int kColumns, int kCluster>
SharedNeed TilesNeed() {
  return {"pinned grouped product by wgmma", FunctionOf(GroupedWgmmaKernel<kColumns, kCluster>),
          Layout<kColumns>::kBytes + TableBytes(kMaxExperts)};
}

}  // namespace

SharedNeeds GroupedGemmWgmmaNeeds() {
  return {TilesNeed<128, 1>(), TilesNeed<192, 1>(), TilesNeed<128, 2>(), TilesNeed<192, 2>()};
}

bool WgmmaCanComputeExperts(const GroupedGemmArgs& args) {
  const PackedPart part{.format = args.format, .rows = args.most_rows, .cols = args.cols};
  const GroupedPlaces& places = args.places;
  // No expert has more tiles than its places and one, which is not full.
  return args.maps != nullptr && places.rows == nullptr && RoundedRows(args) > 0 &&
         places.num_experts <= kMaxExperts &&
         WgmmaCanCompute(part, places.end - places.begin + places.num_experts * kTokens);
}

int MakeWeightMaps(const PackedPart* parts, int64_t count, void* maps) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t pitch = RowPitch(parts[i].cols);
    TensorMap map;
    const int error =
        MakeTensorMap(parts[i].quants, pitch, parts[i].rows, pitch * 2, kMapRows, &map);
    if (error != 0) return error;
    std::memcpy(static_cast<char*>(maps) + static_cast<size_t>(i) * kWeightMapBytes, &map,
                sizeof(map));
  }
  return 0;
}

int LaunchGroupedGemmWgmma(const GroupedGemmArgs& args, const WgmmaTiles& tiles,
                           int multiprocessors, uint32_t* stuck, Stream stream) {
  const int error = LaunchGroupedGemmFewPlaces(args, stream);
  if (error != 0 || args.places.end - args.places.begin <= kFewPlaces) return error;
  if (tiles.cluster == 1) {
    return tiles.columns == 128 ? LaunchTiles<128, 1>(args, multiprocessors, stuck, stream)
                                : LaunchTiles<192, 1>(args, multiprocessors, stuck, stream);
  }
  return tiles.columns == 128 ? LaunchTiles<128, 2>(args, multiprocessors, stuck, stream)
                              : LaunchTiles<192, 2>(args, multiprocessors, stuck, stream);
}

}  // namespace verbatim::kernels::cuda

// What the kernels of kernels/cuda are called with: plain structs of device pointers, one launcher
// an operation.
//
// Each launcher puts its kernels on the stream and returns 0, or the error code of a launch (a
// cudaError_t). Shapes have been checked by the caller; contracts are those of kernels/ops/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/packed_part.h"
#include "kernels/cuda/stream.h"
#include "kernels/numerics/random_weights.h"
#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/dtype.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/tree_sum.h"

namespace verbatim::kernels::cuda {

// Bits of the device's fault word: bad values that only a kernel can see.
inline constexpr uint32_t kFaultToken = 1;
inline constexpr uint32_t kFaultRowIndex = 2;
inline constexpr uint32_t kFaultPosition = 4;
inline constexpr uint32_t kFaultExpert = 8;
inline constexpr uint32_t kFaultPlace = 16;

// Values of consecutive rows, to the layout of packed_part.h: padding is +0.
struct RandomWeightsArgs {
  numerics::RandomWeights weights;
  int64_t rows, cols;
  void* rows_bf16;  // [rows][RowPitch(cols)]
};
int LaunchRandomWeights(const RandomWeightsArgs& args, Stream stream);

struct EmbeddingArgs {
  const PackedPart* parts;  // in host memory
  int num_parts;
  int64_t vocab;
  int64_t cols;
  const int32_t* tokens;
  int64_t num_tokens;
  float scale;
  float* y;
  bool round;
  uint32_t* fault;
};
int LaunchEmbedding(const EmbeddingArgs& args, Stream stream);

struct RmsNormArgs {
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
  const float* weight;
  int64_t rows, groups, cols;
  float eps;
  bool round;
};
int LaunchRmsNorm(const RmsNormArgs& args, Stream stream);

struct RopeArgs {
  float* qkv;
  int64_t row_stride;
  int64_t tokens;
  int64_t heads;  // query and key heads together
  int64_t head_dim;
  bool interleaved;
  const int32_t* positions;
  const float* cos_table;
  const float* sin_table;
  uint32_t* fault;
};
int LaunchRope(const RopeArgs& args, Stream stream);

struct SwiGluArgs {
  const float* gate_up;
  float* y;
  int64_t tokens, cols;
  bool round;
};
int LaunchSwiGlu(const SwiGluArgs& args, Stream stream);

struct GatherRowsArgs {
  const float* x;
  int64_t rows, cols;
  const int32_t* index;
  int64_t num_rows;
  float* y;
  uint32_t* fault;
};
int LaunchGatherRows(const GatherRowsArgs& args, Stream stream);

struct TreeSumArgs {
  const float* parts[kMaxTreeParts];
  int num_parts;
  int64_t count;
  const float* residual;  // or null
  float* y;
  bool round;
};
int LaunchTreeSum(const TreeSumArgs& args, Stream stream);

// The paged cache. Per (layer, page, head): K as segments of 16 bytes along head_dim,
// [key_segments][page_tokens][16 bytes]; then V, [page_tokens][v_stride].
struct KvLayout {
  void* data;
  bool bf16;
  int64_t num_pages, num_kv_heads, head_dim, page_tokens;

  VERBATIM_HD int64_t segment_elements() const { return bf16 ? 8 : 4; }
  VERBATIM_HD int64_t key_segments() const {
    return (head_dim + segment_elements() - 1) / segment_elements();
  }
  VERBATIM_HD int64_t v_stride() const { return key_segments() * segment_elements(); }
  VERBATIM_HD int64_t v_offset() const { return v_stride() * page_tokens; }
  VERBATIM_HD int64_t head_elements() const { return 2 * v_offset(); }
  VERBATIM_HD int64_t element_bytes() const { return bf16 ? 2 : 4; }
  // In elements.
  VERBATIM_HD int64_t HeadOffset(int64_t layer, int64_t page, int64_t head) const {
    return ((layer * num_pages + page) * num_kv_heads + head) * head_elements();
  }
};

// One row of the batch that is written: its row, and where its position lies.
struct KvRow {
  int32_t row;
  int32_t page;    // −1: the row is not written
  int32_t offset;  // position within the page
};

struct KvWriteArgs {
  KvLayout layout;
  int64_t layer;
  const float* k;
  const float* v;
  int64_t row_stride;
  const KvRow* rows;
  int64_t num_rows;
};
int LaunchKvWrite(const KvWriteArgs& args, Stream stream);

// Consecutive queries of one span and KV head: query i is head i % heads_per_kv of the span's row
// i / heads_per_kv.
struct AttentionTile {
  int32_t first_row;       // of the span, in the batch
  int32_t first_position;  // of the span
  int32_t first_query;
  int32_t num_queries;  // 0: nothing is computed
  int32_t first_page;   // index into the page table of the span's first page
};

// Positions of a cut: the contract's, and those of THROUGHPUT's decode steps with few blocks.
inline constexpr int64_t kCutLength = 256;
inline constexpr int64_t kShortCutLength = 64;

struct AttentionArgs {
  KvLayout layout;
  int64_t layer;
  const float* q;
  int64_t q_stride;
  float* y;
  int64_t y_stride;
  int64_t num_heads;
  int64_t heads_per_kv;
  float scale;
  const AttentionTile* tiles;
  int64_t num_tiles;
  int64_t tile_queries;  // at most this many in a tile
  const int32_t* pages;
  // Cuts computed by blocks of their own and folded afterwards when partials is not null:
  // [query rows of the batch, heads, max_cuts, head_dim + 2]; otherwise one block walks all cuts.
  float* partials;
  int64_t max_cuts;
  const int32_t* row_cuts;  // [batch_rows]: cuts of each row's history; 0 for rows of no span
  int64_t cut_length = kCutLength;  // or kShortCutLength, for LaunchAttentionMmaSplit alone
  int64_t batch_rows;
  bool round;
};
// PORTABLE: tiles of at most 8 or 32.
int LaunchAttention(const AttentionArgs& args, Stream stream);
// The second half of the others: folds the partials of rows that have cuts.
int LaunchAttentionFold(const AttentionArgs& args, Stream stream);

// Whether the strong policy of this device and THROUGHPUT compute attention on the matrix units: a
// function of the configuration alone.
VERBATIM_HD constexpr bool AttentionOnMatrixUnits(const KvLayout& layout) {
  return layout.bf16 && layout.head_dim % 8 == 0 && layout.head_dim <= 256;
}
// Two ways with the same arithmetic. Split: tiles of at most kSplitTileQueries, a block a cut;
// partials unless max_cuts is 1. Walk: tiles of at most kWalkTileQueries, a block walks all cuts;
// no partials, and max_cuts only says whether there is more than one.
inline constexpr int64_t kSplitTileQueries = 16;
inline constexpr int64_t kWalkTileQueries = 64;
int LaunchAttentionMmaSplit(const AttentionArgs& args, Stream stream);
int LaunchAttentionMmaWalk(const AttentionArgs& args, Stream stream);

// y[t, first column + n] = residual + (x · wᵀ + bias) for one part of a weight matrix.
struct GemmArgs {
  PackedPart part;
  int64_t tokens;
  const float* x;
  int64_t x_stride;
  float* y;  // column 0 of the whole matrix
  int64_t y_stride;
  const float* bias;      // of the whole matrix, or null
  const float* residual;  // with y_stride, or null
  bool round;
  int multiprocessors;
};
int LaunchGemmPortable(const GemmArgs& args, Stream stream);

// PINNED product for one part of BF16. Which kernel runs depends on the number of tokens,
// what an output's instructions and their order are does not.
struct GemmPinnedArgs {
  PackedPart part;
  int64_t tokens;
  const void* rounded_x;  // RoundRows of x
  float* y;
  int64_t y_stride;
  const float* bias;
  const float* residual;
  bool round;
  float* partials;  // working memory
  size_t partial_bytes;
  int multiprocessors;
  int shard_depth =
      numerics::kShardDepth;  // less where the columns are a node of a longer reduction
};
int LaunchGemmPinned(const GemmPinnedArgs& args, Stream stream);
// The end of the product where shards were computed apart, [shards][tokens][rows] in args.partials.
int LaunchJoinShards(const GemmPinnedArgs& args, int shards, Stream stream);

// The same product by wgmma, for devices that have it: of equal bits where its instructions sum as
// mma.sync's do. `stuck` is a word of host memory that is set before a trap when the kernel waited
// for something that never came.
struct WgmmaTiles {
  int columns;  // a tile is 128 tokens × 128 or 192 outputs
  int cluster;  // 1 or 2 blocks, with different tokens, that read the same weights once; in
                // products of experts with different outputs, that read the same tokens once
};
inline constexpr WgmmaTiles kWgmmaTiles[] = {{128, 1}, {192, 1}, {128, 2}, {192, 2}};
int LaunchGemmPinnedWgmma(const GemmPinnedArgs& args, const WgmmaTiles& tiles, uint32_t* stuck,
                          Stream stream);
// Whether it can be called for these: a function of the shapes.
bool WgmmaCanCompute(const PackedPart& part, int64_t tokens);
// Writes whether this device runs code compiled with wgmma: 1 or 0.
int LaunchWgmmaProbe(uint32_t* answer, Stream stream);

// In place, y = bf16(y + bias): what a library's product leaves to do. A null bias and
// rounding that is not asked for are left out.
struct GemmFinishArgs {
  int64_t tokens;
  int64_t rows;
  float* y;
  int64_t y_stride;
  const float* bias;
  bool round;
};
int LaunchGemmFinish(const GemmFinishArgs& args, Stream stream);

struct MoeRouteArgs {
  const float* logits;
  int64_t tokens, num_experts, top_k;
  bool normalise;
  float scale;
  int64_t capacity;  // 0: no limit
  bool next;         // a full expert's token takes its next one
  const uint8_t* exempt;
  const MoeStepLimits* limits;  // or null
  int32_t* experts;
  int32_t* wanted;
  float* weights;
};
int LaunchMoeRoute(const MoeRouteArgs& args, Stream stream);

struct MoePermuteArgs {
  const int32_t* experts;
  int64_t tokens, num_experts, top_k;
  int32_t* offsets;
  int32_t* token_of;
  int32_t* place_of;
  int64_t* totals;  // or null, as the next two
  const int32_t* wanted;
  const MoeStepLimits* limits;
  uint32_t* fault;
};
int LaunchMoePermute(const MoePermuteArgs& args, Stream stream);

struct MoeCombineArgs {
  const float* expert_rows;
  const int32_t* place_of;
  const float* weights;
  int64_t tokens, top_k, cols;
  const float* shared;
  const float* shared_gate;
  const float* residual;
  float* y;
  bool round;
  uint32_t* fault;
};
int LaunchMoeCombine(const MoeCombineArgs& args, Stream stream);

// The places [begin, end) of a grouped product: which expert's each is, and which row of x it has.
struct GroupedPlaces {
  const int32_t* offsets;  // [num_experts + 1]
  int64_t num_experts;
  int64_t begin, end;
  int64_t max_places;   // of the whole product
  const int32_t* rows;  // [max_places], or null: the place itself
  int64_t x_rows;
  uint32_t* fault;
};

// y[place] = x[row] · wᵀ for the parts of one format that experts have at one position.
struct GroupedGemmArgs {
  GroupedPlaces places;
  DType format;
  const PackedPart* parts;  // [num_experts], device memory; without rows where the format differs
  const void* maps;         // [num_experts], device memory: MakeWeightMaps; null: by mma.sync only
  int64_t most_rows;        // of a part
  int64_t cols;
  const float* x;  // PORTABLE
  int64_t x_stride;
  const void* rounded_x;  // PINNED: RoundRows of the rows from `rounded_first` on
  int64_t rounded_first;
  float* y;
  int64_t y_stride;
  bool round;
  int shard_depth = numerics::kShardDepth;  // PINNED, as in GemmPinnedArgs
};
int LaunchGroupedGemmPortable(const GroupedGemmArgs& args, Stream stream);
int LaunchGroupedGemmPinned(const GroupedGemmArgs& args, Stream stream);
// The part of it that is the products of experts with few places, and the check of all places.
int LaunchGroupedGemmFewPlaces(const GroupedGemmArgs& args, Stream stream);

// Experts with more places by wgmma, as LaunchGemmPinnedWgmma; all of one shape, and an expert's
// rounded rows one after the other: args.places.rows is null.
int LaunchGroupedGemmWgmma(const GroupedGemmArgs& args, const WgmmaTiles& tiles,
                           int multiprocessors, uint32_t* stuck, Stream stream);
// Whether it can be called for these: a function of the shapes, and of whether there are maps.
bool WgmmaCanComputeExperts(const GroupedGemmArgs& args);
// Fills `maps`, kWeightMapBytes for each part of BF16 in host memory, with what their copies in
// device memory, at a multiple of 128, are for the launcher above.
inline constexpr size_t kWeightMapBytes = 128;
int MakeWeightMaps(const PackedPart* parts, int64_t count, void* maps);

// The rows of x at the places [first_row, first_row + num_rows) as bf16 with a pitch of
// RowPitch(cols) elements; columns and rows that do not exist are +0.
struct RoundRowsArgs {
  GroupedPlaces places;
  const float* x;
  int64_t x_stride;
  int64_t first_row, num_rows;
  int64_t cols;
  void* rounded;
};
int LaunchRoundRows(const RoundRowsArgs& args, Stream stream);

}  // namespace verbatim::kernels::cuda

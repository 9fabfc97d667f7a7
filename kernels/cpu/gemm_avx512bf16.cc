// The matrix product with bf16 inputs by the processor's dot products of bf16 pairs: PINNED on
// processors that have them, and THROUGHPUT with bf16 activations where it is the fastest.
//
// The integers of quantised weights are bf16 values, so a table turns stored bits into pairs
// without rounding, and d and m are applied to sums of whole groups: sum x (d q + m) = d sum x q +
// m sum x. The order depends on k alone, as PINNED demands: per shard (a node of the tree) groups
// ascend from +0; within a group pairs ascend from +0; then total = fma(d, part, total), and where
// the format has minima total = fma(m, sum of x over the group, total). Plain BF16 has no groups:
// pairs ascend from +0 through the shard. Shards join by the tree's top.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_layout.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops/block_formats.h"

// The following must come in this order.
#include "kernels/cpu/gemm_simd.inc"
//
#include "kernels/cpu/gemm_formats.inc"
//
#include "kernels/cpu/gemm_bf16_tiles.inc"

namespace verbatim::kernels::cpu::isa_avx512bf16 {
namespace {

using TileFunction = void (*)(const Job&);

// From how many tiles on a chunk is decoded once for all of them. Nibbles turn into pairs beside
// the dot products of a tile or two at little cost.
template <DType kDType>
constexpr int kMinDecodeTiles =
    QuantLayout<kDType>::kHighBits > 0 || kDType == DType::kQ8_0 ? 1 : 4;
template <>
constexpr int kMinDecodeTiles<DType::kBF16> = 1 << 30;
template <DType kDType>
constexpr bool kHasMin = QuantLayout<kDType>::kHasMin;
template <>
constexpr bool kHasMin<DType::kBF16> = false;

// direct[rows] read row-major x; packed[rows] packed tiles and stored weights; decoded[rows] packed
// tiles and decoded chunks.
template <DType kDType>
struct Tiles {
  TileFunction direct[kMaxBf16DirectRows + 1] = {};
  TileFunction packed[kBf16TileRows + 1] = {};
  TileFunction decoded[kBf16TileRows + 1] = {};
  constexpr Tiles() { Fill<kBf16TileRows>(); }
  template <int kRows>
  constexpr void Fill() {
    if constexpr (kRows > 0) {
      if constexpr (kDType == DType::kBF16) {
        packed[kRows] = PlainTile<kRows, Packed<kRows>>;
      } else {
        decoded[kRows] = DecodedTile<kDType, kRows>;
        if constexpr (kMinDecodeTiles < kDType >> 1) {
          packed[kRows] = StoredTile<kDType, kRows, Packed<kRows>>;
        }
      }
      if constexpr (kRows <= kMaxBf16DirectRows) {
        if constexpr (kDType == DType::kBF16) {
          direct[kRows] = PlainTile<kRows, RowMajor<kRows>>;
        } else {
          direct[kRows] = StoredTile<kDType, kRows, RowMajor<kRows>>;
        }
      }
      Fill<kRows - 1>();
    }
  }
};

// Some rows of the run: all of them from row-major x (tiles 0), or tiles of packed x. One panel at
// a time, which streams from memory at full speed where several side by side do not.
template <DType kDType>
class Block {
 public:
  Block(const PanelRun& run, int64_t first_tile, int tiles, int64_t row)
      : run_(run), first_tile_(first_tile), tiles_(tiles), row_(row) {}

  void Run() {
    for (int64_t panel = 0; panel < run_.panel_count; ++panel) Panel(panel);
  }

 private:
  bool decodes() const { return tiles_ >= kMinDecodeTiles<kDType>; }

  void Panel(int64_t panel) {
    Job job;
    const int64_t column = panel * kPanelLanes;
    for (int v = 0; v < kStripVecs; ++v) {
      const int64_t lanes =
          std::clamp<int64_t>(run_.columns - column - v * Vec::kWidth, 0, Vec::kWidth);
      job.mask[v] = static_cast<uint16_t>((1 << lanes) - 1);
    }
    job.x_stride = run_.x_bf16_stride;
    job.y_stride = run_.y_stride;
    job.bias = run_.bias == nullptr ? nullptr : run_.bias + column;
    job.sums_stride = run_.x_sums_stride;
    const char* const first = reinterpret_cast<const char*>(run_.panels) + panel * run_.panel_bytes;
    const int64_t chunks = (run_.k + kChunk - 1) / kChunk;
    int level = 0;
    int64_t begin = 0;
    bool shard_begins = true;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int joins = run_.shard_joins[chunk];
      // Tiles take turns at every chunk; a single one goes through a whole shard.
      if (tiles_ == 0 && joins < 0) continue;
      job.ends_shard = joins >= 0;
      job.joins = std::max(joins, 0);
      job.last = chunk + 1 == chunks;
      const int64_t k = begin * kChunk;
      const int64_t count = std::min((chunk + 1) * kChunk, run_.k) - k;
      job.strips = {first, run_.panel_bytes, 0};
      if constexpr (kDType == DType::kBF16) {
        job.pairs_at = first + k * kPanelLanes * 2;
        job.pairs = (count + 1) / 2;
      } else {
        constexpr int kGroup = QuantLayout<kDType>::kGroup;
        job.groups_begin = k / kGroup;
        job.groups_end = (k + count) / kGroup;
        if (decodes()) {
          DecodeChunk<kDType>(first, job.groups_begin, job.groups_end, &decoded_);
          job.decoded = &decoded_;
        }
      }
      RunTiles(job, k, column, level, shard_begins);
      begin = chunk + 1;
      shard_begins = job.ends_shard;
      if (job.ends_shard) level += 1 - joins;
    }
  }

  void RunTiles(Job& job, int64_t k, int64_t column, int level, bool shard_begins) {
    static constexpr Tiles<kDType> kTiles;
    const int64_t tile_pairs = run_.x_bf16_stride / 2 * kBf16TileRows;
    for (int t = 0; t < std::max(tiles_, 1); ++t) {
      const Bf16Tile tile = tiles_ == 0 ? Bf16Tile{0, static_cast<int>(run_.tokens)}
                                        : Bf16TileOf(run_.tokens, first_tile_ + t);
      const int64_t at = (tile.row - row_) * kPanelLanes;
      job.out = sums_[level] + at;
      job.from = shard_begins ? kZeros : job.out;
      for (int j = 0; j < job.joins; ++j) job.left[j] = sums_[level - 1 - j] + at;
      job.joined = sums_[level - job.joins] + at;
      job.y = run_.y + tile.row * run_.y_stride + column;
      job.residual =
          run_.residual == nullptr ? nullptr : run_.residual + tile.row * run_.y_stride + column;
      if constexpr (kHasMin<kDType>) {
        job.sums = run_.x_sums + job.groups_begin * job.sums_stride + tile.row;
      }
      if (tiles_ == 0) {
        job.x = run_.x_bf16 + tile.row * job.x_stride + k;
        kTiles.direct[tile.rows](job);
      } else {
        job.x_pairs = run_.x_pairs + (first_tile_ + t) * tile_pairs + k / 2 * kBf16TileRows;
        (decodes() ? kTiles.decoded : kTiles.packed)[tile.rows](job);
      }
    }
  }

  const PanelRun& run_;
  const int64_t first_tile_;
  const int tiles_;
  const int64_t row_;
  DecodedChunk decoded_;
  alignas(64) float sums_[kLevels][kBlockRows * kPanelLanes];
};

template <DType kDType>
void GemmOf(const PanelRun& run) {
  if (run.tokens <= kMaxBf16DirectRows) {
    Block<kDType>(run, 0, 0, 0).Run();
    return;
  }
  constexpr int64_t kBlockTiles = kBlockRows / kBf16TileRows;
  const int64_t tiles = Bf16Tiles(run.tokens);
  // Even blocks: a last one of few tiles would pay as much for decoding.
  const int64_t blocks = (tiles + kBlockTiles - 1) / kBlockTiles;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t tile = tiles * block / blocks;
    const int count = static_cast<int>(tiles * (block + 1) / blocks - tile);
    Block<kDType>(run, tile, count, Bf16TileOf(run.tokens, tile).row).Run();
  }
}

}  // namespace

void Bf16Gemm(const PanelRun& run) {
  switch (run.dtype) {
    case DType::kBF16:
      return GemmOf<DType::kBF16>(run);
    case DType::kQ8_0:
      return GemmOf<DType::kQ8_0>(run);
    case DType::kQ4_0:
      return GemmOf<DType::kQ4_0>(run);
    case DType::kQ4_1:
      return GemmOf<DType::kQ4_1>(run);
    case DType::kQ5_0:
      return GemmOf<DType::kQ5_0>(run);
    case DType::kQ5_1:
      return GemmOf<DType::kQ5_1>(run);
    case DType::kQ4_K:
      return GemmOf<DType::kQ4_K>(run);
    case DType::kQ6_K:
      return GemmOf<DType::kQ6_K>(run);
    case DType::kF32:
    case DType::kF16:
      return isa_avx512::kGemmKernels.tree(run);
  }
}

}  // namespace verbatim::kernels::cpu::isa_avx512bf16

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

namespace verbatim::kernels::cpu::isa_avx512bf16 {
namespace {

// One panel at a time: it streams from memory at full speed where several panels side by side do
// not.
static_assert(kMaxBf16DirectRows <= kBf16TileRows);
static_assert(kBf16TileRows <= 12 && kBf16TileRows % 4 == 0);  // 24 accumulators of 32 registers
constexpr int kBlockRows = 96;                                 // share one reading of a chunk
constexpr int kLevels = 3;                                     // pending shard sums of one output

// A decoded chunk of one panel: bf16 pairs, and the scales of its groups.
struct DecodedChunk {
  alignas(64) uint16_t pairs[kChunk / 2][kPanelLanes][2];
  alignas(64) float d[kChunk / 16][kPanelLanes];
  alignas(64) float m[kChunk / 16][kPanelLanes];
};

// Some consecutive chunks of one shard, one panel, one tile of rows.
struct Job {
  Strips strips;                     // the stored panel
  const DecodedChunk* decoded;       // or this
  int64_t groups_begin, groups_end;  // of a quantised format, counted from k = 0
  const char* pairs_at;              // of plain BF16: [pairs][32][2]
  int64_t pairs;
  const uint16_t* x;  // row 0 at the first k of the job, [rows, x_stride]
  int64_t x_stride;
  const int32_t* x_pairs;  // or [pairs][kBf16TileRows]
  const float* sums;       // of x: [groups][sums_stride], where the format has minima
  int64_t sums_stride;
  const float* from;  // the shard's sums so far, [rows][32]: zeros at its start, else `out`
  float* out;         // [rows][32]
  bool ends_shard;
  int joins;                   // of a shard that ends: with left[0], left[1], in this order;
  const float* left[kLevels];  // each [rows][32]
  float* joined;               // then here,
  bool last;                   // or, when the tree is complete, to y
  float* y;                    // at the panel's first lane; bias and residual likewise
  int64_t y_stride;
  const float* bias;
  const float* residual;
  uint16_t mask[kStripVecs];  // lanes that exist
};

alignas(64) constexpr float kZeros[kBf16TileRows * kPanelLanes] = {};

VERBATIM_INLINE Vec DotPairs(Vec sum, IntVec x, IntVec w) {
  return {
      _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(w.v))};
}

// x, pair by pair: At<r, p> is pair p past the position, of row r.
template <int kRows>
struct RowMajor {
  static_assert(kRows <= 8);
  const uint16_t* row[2];
  int64_t stride, stride3;

  VERBATIM_INLINE explicit RowMajor(const Job& job) {
    stride = job.x_stride;
    stride3 = 3 * job.x_stride;
    row[0] = job.x;
    row[1] = kRows > 4 ? job.x + 4 * job.x_stride : job.x;
    __asm__("" : "+r"(stride), "+r"(stride3));
    if constexpr (kRows > 4) __asm__("" : "+r"(row[1]));
  }
  template <int kRow, int kPair>
  VERBATIM_INLINE IntVec At() const {
    const uint16_t* p = row[kRow / 4] + 2 * kPair;
    if constexpr (kRow % 4 == 1) p += stride;
    if constexpr (kRow % 4 == 2) p += 2 * stride;
    if constexpr (kRow % 4 == 3) p += stride3;
    int32_t pair;
    memcpy(&pair, p, 4);
    return BroadcastInt(pair);
  }
  VERBATIM_INLINE void Advance(int elements) {
    row[0] += elements;
    if constexpr (kRows > 4) row[1] += elements;
  }
};

template <int kRows>
struct Packed {
  const int32_t* x;

  VERBATIM_INLINE explicit Packed(const Job& job) : x(job.x_pairs) {}
  template <int kRow, int kPair>
  VERBATIM_INLINE IntVec At() const {
    return BroadcastInt(x[kPair * kBf16TileRows + kRow]);
  }
  VERBATIM_INLINE void Advance(int elements) { x += elements / 2 * kBf16TileRows; }
};

// Entry i: the bf16 bits of i - offset.
template <DType kDType>
struct PairTables {
  static constexpr int kHighBits = QuantLayout<kDType>::kHighBits;
  __m512i low, high;

  PairTables() {
    alignas(64) uint16_t entries[64];
    for (int i = 0; i < 64; ++i) {
      const int q = kHighBits == 0 ? i % 16 : kHighBits == 1 ? i % 32 : i;
      const float value = static_cast<float>(q - Format<kDType>::kOffset);
      uint32_t bits;
      memcpy(&bits, &value, 4);
      entries[i] = static_cast<uint16_t>(bits >> 16);
    }
    low = _mm512_load_si512(entries);
    high = _mm512_load_si512(entries + 32);
  }
  // Pair kPair (0 ... 3) of a word of nibbles; only the low five or six bits of an index count.
  template <int kPair>
  VERBATIM_INLINE IntVec Pair(IntVec nibbles, IntVec high_bits) const {
    const __m512i shifted = _mm512_srli_epi16(nibbles.v, 4 * kPair);
    if constexpr (kHighBits == 0) return {_mm512_permutexvar_epi16(shifted, low)};
    constexpr int kUp = 4 - kHighBits * kPair;
    const __m512i above = kUp >= 0 ? _mm512_slli_epi16(high_bits.v, kUp >= 0 ? kUp : 0)
                                   : _mm512_srli_epi16(high_bits.v, kUp >= 0 ? 0 : -kUp);
    // nibbles where the mask is set, the high bits elsewhere
    const __m512i index =
        _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x000f000f), shifted, above, 0xca);
    if constexpr (kHighBits == 1) return {_mm512_permutexvar_epi16(index, low)};
    return {_mm512_permutex2var_epi16(low, index, high)};
  }
};

template <DType kDType, int kVecs, class Step, class Advance>
VERBATIM_INLINE void ForEachPairInGroup(Strips data, const PairTables<kDType>& tables, Step&& step,
                                        Advance&& advance) {
  using Layout = QuantLayout<kDType>;
  if constexpr (kDType == DType::kQ8_0) {
    for (int i = 0; i < 8; ++i) {
      IntVec bytes[kVecs];
      Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE { bytes[v] = LoadInts(data.At(v, 4)); });
      Unroll<2>([&](auto p) VERBATIM_LAMBDA_INLINE {
        IntVec pair[kVecs];
        Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
          // Eight significant bits: the lower halves of these floats are zero.
          pair[v] = Or(ShiftRightLogical<16>(BitCast(SignedByteTimes2To24<2 * p>(bytes[v]))),
                       BitCast(SignedByteTimes2To24<2 * p + 1>(bytes[v])));
        });
        step(p, pair);
      });
      advance(4);
      data.panels += 4 * kPanelLanes;
    }
  } else {
    IntVec high[kVecs] = {};
    if constexpr (Layout::kHighBits > 0) {
      Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE { high[v] = LoadInts(data.At(v, 4)); });
      data.panels += 4 * kPanelLanes;
    }
    for (int i = 0; i < Layout::kGroup / 8; ++i) {
      IntVec low[kVecs];
      Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE { low[v] = LoadInts(data.At(v, 4)); });
      Unroll<4>([&](auto p) VERBATIM_LAMBDA_INLINE {
        IntVec pair[kVecs];
        Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
          pair[v] = tables.template Pair<p>(low[v], high[v]);
        });
        step(p, pair);
      });
      advance(8);
      data.panels += 4 * kPanelLanes;
      if constexpr (Layout::kHighBits > 0) {
        Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
          high[v] = {_mm512_srli_epi16(high[v].v, 4 * Layout::kHighBits)};
        });
      }
    }
  }
}

// Where the sums of a job go when its last group is in.
template <int kRows>
VERBATIM_INLINE void Finish(const Job& job, const Vec (&total)[kRows][kStripVecs]) {
  Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
    Unroll<kStripVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
      constexpr int kAt = (r * kStripVecs + v) * Vec::kWidth;
      Vec sum = total[r][v];
      if (!job.ends_shard) {
        Store(job.out + kAt, sum);
        return;
      }
      for (int j = 0; j < job.joins; ++j) sum = Add(Load(job.left[j] + kAt), sum);
      if (!job.last) {
        Store(job.joined + kAt, sum);
        return;
      }
      constexpr int kColumn = v * Vec::kWidth;
      const __mmask16 mask = job.mask[v];
      if (job.bias != nullptr) {
        sum = Add(sum, {_mm512_maskz_loadu_ps(mask, job.bias + kColumn)});
      }
      if (job.residual != nullptr) {
        sum = Add(sum, {_mm512_maskz_loadu_ps(mask, job.residual + r * job.y_stride + kColumn)});
      }
      _mm512_mask_storeu_ps(job.y + r * job.y_stride + kColumn, mask, sum.v);
    });
  });
}

// Asks for the lines of y early: nobody has them, and a store would wait.
template <int kRows>
VERBATIM_INLINE void PrefetchOutput(const Job& job) {
  if (!job.last) return;
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kStripVecs; ++v) {
      __builtin_prefetch(job.y + r * job.y_stride + v * Vec::kWidth, 1);
    }
  }
}

template <int kRows>
VERBATIM_INLINE void LoadSums(const float* from, Vec (&sum)[kRows][kStripVecs]) {
  Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
    Unroll<kStripVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
      sum[r][v] = Load(from + (r * kStripVecs + v) * Vec::kWidth);
    });
  });
}

template <int kPair, int kRows, class X>
VERBATIM_INLINE void DotStep(const X& x, const IntVec (&w)[kStripVecs],
                             Vec (&sum)[kRows][kStripVecs]) {
  Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
    const IntVec pair = x.template At<r, kPair>();
    Unroll<kStripVecs>([&](auto v)
                           VERBATIM_LAMBDA_INLINE { sum[r][v] = DotPairs(sum[r][v], pair, w[v]); });
  });
}

// Adds the products of a group to the sums, and hands those of the last group to Finish.
// total(r, v): the group's part scaled and added to a sum.
template <int kRows, class Total>
VERBATIM_INLINE void EndGroup(const Job& job, int64_t at, Total&& total) {
  const float* from = at == job.groups_begin ? job.from : job.out;
  Vec sum[kRows][kStripVecs];
  if (at + 1 == job.groups_end) {
    Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
      Unroll<kStripVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
        sum[r][v] = total(r, v, Load(from + (r * kStripVecs + v) * Vec::kWidth));
      });
    });
    Finish<kRows>(job, sum);
    return;
  }
  Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
    Unroll<kStripVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
      constexpr int kAt = (r * kStripVecs + v) * Vec::kWidth;
      Store(job.out + kAt, total(r, v, Load(from + kAt)));
    });
  });
}

// Plain BF16, as stored.
template <int kRows, class X>
void PlainTile(const Job& job) {
  PrefetchOutput<kRows>(job);
  Vec sum[kRows][kStripVecs];
  LoadSums<kRows>(job.from, sum);
  X x(job);
  const char* at = job.pairs_at;
  const auto step = [&](auto p) VERBATIM_LAMBDA_INLINE {
    IntVec w[kStripVecs];
    Unroll<kStripVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
      w[v] = LoadInts(at + (p * kPanelLanes + v * Vec::kWidth) * 4);
    });
    DotStep<p>(x, w, sum);
  };
  int64_t done = 0;
  for (; done + 4 <= job.pairs; done += 4) {
    Prefetch<16 * kPanelLanes>(at + kChunk * kPanelLanes * 2);
    Unroll<4>(step);
    x.Advance(8);
    at += 16 * kPanelLanes;
  }
  for (; done < job.pairs; ++done) {
    step(Int<0>());
    x.Advance(2);
    at += 4 * kPanelLanes;
  }
  Finish<kRows>(job, sum);
}

// A quantised format, as stored.
template <DType kDType, int kRows, class X>
void StoredTile(const Job& job) {
  using F = Format<kDType>;
  const PairTables<kDType> tables;
  PrefetchOutput<kRows>(job);
  X x(job);
  const float* sums = job.sums;
  for (int64_t at = job.groups_begin; at < job.groups_end; ++at) {
    const typename F::Place place(job.strips, at);
    F::template PrefetchNextChunk<kStripVecs>(place);
    Vec part[kRows][kStripVecs];
    LoadSums<kRows>(kZeros, part);
    ForEachPairInGroup<kDType, kStripVecs>(
        place.data, tables,
        [&](auto p, const IntVec(&w)[kStripVecs])
            VERBATIM_LAMBDA_INLINE { DotStep<p>(x, w, part); },
        [&](int n) VERBATIM_LAMBDA_INLINE { x.Advance(n); });
    const typename F::template Scales<kStripVecs> scales(place.super, place.group);
    EndGroup<kRows>(job, at, [&](int r, int v, Vec sum) VERBATIM_LAMBDA_INLINE {
      sum = Fma(scales.d[v], part[r][v], sum);
      if constexpr (F::Layout::kHasMin) sum = Fma(scales.m[v], Broadcast(sums[r]), sum);
      return sum;
    });
    if constexpr (F::Layout::kHasMin) sums += job.sums_stride;
  }
}

template <DType kDType>
void DecodeChunk(const char* panel, int64_t groups_begin, int64_t groups_end, DecodedChunk* chunk) {
  using F = Format<kDType>;
  const PairTables<kDType> tables;
  auto* pairs = chunk->pairs;
  for (int64_t at = groups_begin; at < groups_end; ++at) {
    const typename F::Place place(Strips{panel, 1, 0}, at);
    F::template PrefetchNextChunk<kStripVecs>(place);
    ForEachPairInGroup<kDType, kStripVecs>(
        place.data, tables,
        [&](auto p, const IntVec(&w)[kStripVecs]) VERBATIM_LAMBDA_INLINE {
          Unroll<kStripVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
            _mm512_store_si512(&pairs[p][v * Vec::kWidth], w[v].v);
          });
        },
        [&](int n) VERBATIM_LAMBDA_INLINE { pairs += n / 2; });
    const typename F::template Scales<kStripVecs> scales(place.super, place.group);
    Unroll<kStripVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
      Store(chunk->d[at - groups_begin] + v * Vec::kWidth, scales.d[v]);
      if constexpr (F::Layout::kHasMin) {
        Store(chunk->m[at - groups_begin] + v * Vec::kWidth, scales.m[v]);
      }
    });
  }
}

// A decoded chunk of a quantised format.
template <DType kDType, int kRows>
void DecodedTile(const Job& job) {
  using Layout = QuantLayout<kDType>;
  PrefetchOutput<kRows>(job);
  Packed<kRows> x(job);
  const float* sums = job.sums;
  const auto* pairs = job.decoded->pairs;
  for (int64_t at = job.groups_begin; at < job.groups_end; ++at) {
    Vec part[kRows][kStripVecs];
    LoadSums<kRows>(kZeros, part);
    for (int i = 0; i < Layout::kGroup / 8; ++i) {
      Unroll<4>([&](auto p) VERBATIM_LAMBDA_INLINE {
        IntVec w[kStripVecs];
        Unroll<kStripVecs>(
            [&](auto v) VERBATIM_LAMBDA_INLINE { w[v] = LoadInts(&pairs[p][v * Vec::kWidth]); });
        DotStep<p>(x, w, part);
      });
      x.Advance(8);
      pairs += 4;
    }
    const float* d = job.decoded->d[at - job.groups_begin];
    const float* m = job.decoded->m[at - job.groups_begin];
    EndGroup<kRows>(job, at, [&](int r, int v, Vec sum) VERBATIM_LAMBDA_INLINE {
      sum = Fma(Load(d + v * Vec::kWidth), part[r][v], sum);
      if constexpr (Layout::kHasMin) {
        sum = Fma(Load(m + v * Vec::kWidth), Broadcast(sums[r]), sum);
      }
      return sum;
    });
    if constexpr (Layout::kHasMin) sums += job.sums_stride;
  }
}

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

// Some rows of the run: all of them from row-major x (tiles 0), or tiles of packed x.
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
  for (int64_t tile = 0; tile < tiles; tile += kBlockTiles) {
    const int count = static_cast<int>(std::min(kBlockTiles, tiles - tile));
    Block<kDType>(run, tile, count, Bf16TileOf(run.tokens, tile).row).Run();
  }
}

}  // namespace

void PackBf16Tile(const uint16_t* x, int64_t x_stride, int rows, int64_t pairs, int32_t* out) {
  // Four rows at a time; rows that the tile lacks repeat its last one and are never read.
  const auto row_at = [&](int r) {
    return reinterpret_cast<const int32_t*>(x + std::min(r, rows - 1) * x_stride);
  };
  for (int r = 0; r < rows; r += 4) {
    const int32_t* row[4] = {row_at(r), row_at(r + 1), row_at(r + 2), row_at(r + 3)};
    int32_t* to = out + r;
    int64_t p = 0;
    for (; p + 4 <= pairs; p += 4, to += 4 * kBf16TileRows) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[0] + p));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[1] + p));
      const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[2] + p));
      const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[3] + p));
      const __m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
      const __m128i cd_low = _mm_unpacklo_epi32(c, d), cd_high = _mm_unpackhi_epi32(c, d);
      const auto store = [&](int i, __m128i v) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * kBf16TileRows), v);
      };
      store(0, _mm_unpacklo_epi64(ab_low, cd_low));
      store(1, _mm_unpackhi_epi64(ab_low, cd_low));
      store(2, _mm_unpacklo_epi64(ab_high, cd_high));
      store(3, _mm_unpackhi_epi64(ab_high, cd_high));
    }
    for (; p < pairs; ++p, to += kBf16TileRows) {
      for (int i = 0; i < 4; ++i) to[i] = row[i][p];
    }
  }
}

void SumGroups(const uint16_t* x, int64_t k, float* sums, int64_t sums_stride) {
  for (int64_t g = 0; g < k / 32; ++g) {
    const __m512i bits = _mm512_loadu_si512(x + g * 32);
    // Elements 2j and 2j + 1 of lane j.
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    const __m512 odd = _mm512_castsi512_ps(
        _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, _mm512_add_ps(even, odd));
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    sums[g * sums_stride] = lanes[0];
  }
}

uint32_t ProbeDotProducts() {
  uint32_t state = 1, hash = 2166136261u;
  const auto random = [&] {
    state = state * 1664525u + 1013904223u;
    return state;
  };
  for (int round = 0; round < 64; ++round) {
    alignas(64) uint32_t a[16], b[16], sum[16];
    for (int i = 0; i < 16; ++i) {
      a[i] = random();
      b[i] = random();
      sum[i] = random();
      // Every other round: exponents near one another, so that roundings meet.
      if (round % 2 == 0) {
        a[i] = (a[i] & 0x83ff83ffu) | 0x3c003c00u;
        b[i] = (b[i] & 0x83ff83ffu) | 0x3c003c00u;
        sum[i] = (sum[i] & 0x83ffffffu) | 0x3c000000u;
      }
    }
    const Vec result =
        DotPairs({_mm512_load_ps(reinterpret_cast<const float*>(sum))}, LoadInts(a), LoadInts(b));
    _mm512_store_ps(reinterpret_cast<float*>(sum), result.v);
    for (const uint32_t bits : sum) {
      // Which NaN comes out is of no account: a NaN ends its request.
      const uint32_t seen = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
      hash = (hash ^ seen) * 16777619u;
    }
  }
  return hash;
}

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

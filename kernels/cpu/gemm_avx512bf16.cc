// The matrix product of THROUGHPUT with bf16 activations, by dot products of bf16 pairs.
//
// The integers of quantised weights are bf16 values, so a table turns stored bits into pairs
// without rounding, and d and m are applied to sums of whole groups: sum x (d q + m) = d sum x q +
// m sum x.
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

constexpr int kScaledRows = 6;   // twice 12 accumulators of 32 registers
constexpr int kPlainRows = 12;   // 24 accumulators
constexpr int kMaxWideRows = 3;  // two panels at once up to here, to have enough chains
static_assert(kMaxWideRows * 2 <= kPlainRows);
constexpr int kSumGroups = 512;
// Tiles of rows that share one pass over the weights.
constexpr int kBlockTiles = 8;
// As for the tree (gemm_tree.inc): with fewer rows the hardware fetches ahead well enough.
constexpr int kMinPrefetchRows = 3;

struct Job {
  Strips strips;
  int64_t groups_begin, groups_end;  // of a quantised format
  int64_t pairs;                     // of BF16
  const uint16_t* x;                 // at k = 0
  int64_t x_stride;
  const float* sums;  // [groups_end - groups_begin][rows] of x, where the format has minima
  float* out;         // [rows][panels][32]: added to
};

VERBATIM_INLINE Vec DotPairs(Vec sum, IntVec x, IntVec w) {
  return {
      _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(w.v))};
}

// x of pair kPair past the position of row r.
template <int kRows>
struct Rows {
  const uint16_t* row[3];
  int64_t stride, stride3;

  VERBATIM_INLINE Rows(const uint16_t* x, int64_t x_stride) {
    stride = x_stride;
    stride3 = 3 * x_stride;
    row[0] = x;
    row[1] = kRows > 4 ? x + 4 * x_stride : x;
    row[2] = kRows > 8 ? x + 8 * x_stride : x;
    __asm__("" : "+r"(stride), "+r"(stride3));
    if constexpr (kRows > 4) __asm__("" : "+r"(row[1]));
    if constexpr (kRows > 8) __asm__("" : "+r"(row[2]));
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
    if constexpr (kRows > 8) row[2] += elements;
  }
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

template <DType kDType, int kRows, int kPanels>
void Tile(const Job& job) {
  constexpr int kVecs = kPanels * kStripVecs;
  Vec total[kRows][kVecs];
  Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
    Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
      total[r][v] = Load(job.out + (r * kVecs + v) * Vec::kWidth);
    });
  });
  if constexpr (kDType == DType::kBF16) {
    Rows<kRows> rows(job.x, job.x_stride);
    Strips data = job.strips;
    const auto pair = [&](auto p) VERBATIM_LAMBDA_INLINE {
      IntVec w[kVecs];
      Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
        w[v] = LoadInts(data.At(v, 4) + p * 4 * kPanelLanes);
      });
      Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
        const IntVec x = rows.template At<r, p>();
        Unroll<kVecs>([&](auto v)
                          VERBATIM_LAMBDA_INLINE { total[r][v] = DotPairs(total[r][v], x, w[v]); });
      });
    };
    int64_t done = 0;
    for (; done + 4 <= job.pairs; done += 4) {
      if constexpr (kRows >= kMinPrefetchRows) {
        Unroll<kPanels>([&](auto p) VERBATIM_LAMBDA_INLINE {
          Prefetch<16 * kPanelLanes>(data.panels + p * data.panel_bytes + kChunk * kPanelLanes * 2);
        });
      }
      Unroll<4>(pair);
      rows.Advance(8);
      data.panels += 16 * kPanelLanes;
    }
    for (; done < job.pairs; ++done) {
      pair(Int<0>());
      rows.Advance(2);
      data.panels += 4 * kPanelLanes;
    }
  } else {
    using F = Format<kDType>;
    const PairTables<kDType> tables;
    Rows<kRows> rows(job.x + job.groups_begin * F::Layout::kGroup, job.x_stride);
    const float* sums = job.sums;
    for (int64_t at = job.groups_begin; at < job.groups_end; ++at) {
      const typename F::Place place(job.strips, at);
      if constexpr (kRows >= kMinPrefetchRows) F::template PrefetchNextChunk<kVecs>(place);
      Vec part[kRows][kVecs];
      Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
        Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE { part[r][v] = Broadcast(0.0f); });
      });
      ForEachPairInGroup<kDType, kVecs>(
          place.data, tables,
          [&](auto p, const IntVec(&w)[kVecs]) VERBATIM_LAMBDA_INLINE {
            Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
              const IntVec x = rows.template At<r, p>();
              Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
                part[r][v] = DotPairs(part[r][v], x, w[v]);
              });
            });
          },
          [&](int n) VERBATIM_LAMBDA_INLINE { rows.Advance(n); });
      const typename F::template Scales<kVecs> scales(place.super, place.group);
      Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
        Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
          total[r][v] = Fma(scales.d[v], part[r][v], total[r][v]);
          if constexpr (F::Layout::kHasMin) {
            total[r][v] = Fma(scales.m[v], Broadcast(sums[r]), total[r][v]);
          }
        });
      });
      if constexpr (F::Layout::kHasMin) sums += kRows;
    }
  }
  Unroll<kRows>([&](auto r) VERBATIM_LAMBDA_INLINE {
    Unroll<kVecs>([&](auto v) VERBATIM_LAMBDA_INLINE {
      Store(job.out + (r * kVecs + v) * Vec::kWidth, total[r][v]);
    });
  });
}

template <DType kDType, int kPanels, int kMaxRows>
struct TileTable {
  void (*tile[kMaxRows + 1])(const Job&) = {};
  constexpr TileTable() { Fill<kMaxRows>(); }
  template <int kRows>
  constexpr void Fill() {
    if constexpr (kRows > 0) {
      tile[kRows] = Tile<kDType, kRows, kPanels>;
      Fill<kRows - 1>();
    }
  }
};

// Sums of [rows] of x over groups of kGroup.
template <int kGroup, class X>
void FillSums(X x, int rows, int64_t begin, int64_t end, float* sums) {
  for (int64_t g = begin; g < end; ++g) {
    for (int r = 0; r < rows; ++r) {
      __m512 sum = _mm512_setzero_ps();
      for (int i = 0; i < kGroup; i += 16) {
        const __m512i bits = _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x(r) + g * kGroup + i)));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
      }
      sums[(g - begin) * rows + r] = _mm512_reduce_add_ps(sum);
    }
  }
}

void WriteOut(const PanelRun& run, int64_t row, int rows, int64_t panel, int panels,
              const float* out) {
  for (int r = 0; r < rows; ++r) {
    const int64_t at = (row + r) * run.y_stride;
    for (int v = 0; v < panels * kStripVecs; ++v) {
      const int64_t column = panel * kPanelLanes + v * 16;
      const int64_t left = run.columns - column;
      if (left <= 0) break;
      const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
      __m512 sum = _mm512_load_ps(out + r * panels * kPanelLanes + v * 16);
      if (run.bias != nullptr) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, run.bias + column));
      }
      if (run.residual != nullptr) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, run.residual + at + column));
      }
      _mm512_mask_storeu_ps(run.y + at + column, mask, sum);
    }
  }
}

// All of the run for `rows` rows in `tiles` tiles.
template <DType kDType>
void RunBlock(const PanelRun& run, int64_t first_row, int rows, int tiles) {
  constexpr bool kPlain = kDType == DType::kBF16;
  static constexpr TileTable<kDType, 1, kPlain ? kPlainRows : kScaledRows> kNarrow;
  static constexpr TileTable<kDType, 2, kMaxWideRows> kWide;
  alignas(64) float sums[kPlain ? 1 : kBlockTiles][kPlain ? 1 : kSumGroups * kScaledRows];
  Job job;
  job.pairs = (run.k + 1) / 2;
  job.x_stride = run.x_bf16_stride;
  const bool wide = rows <= kMaxWideRows;
  for (int64_t panel = 0; panel < run.panel_count;) {
    const int panels = wide && panel + 2 <= run.panel_count ? 2 : 1;
    job.strips = {reinterpret_cast<const char*>(run.panels) + panel * run.panel_bytes,
                  run.panel_bytes, 0};
    int64_t row = first_row;
    for (int t = 0; t < tiles; ++t) {
      const int tile_rows = rows / tiles + (t < rows % tiles);
      const auto tile = (panels == 2 ? kWide.tile : kNarrow.tile)[tile_rows];
      alignas(64) float out[kPlainRows * kPanelLanes] = {};
      job.out = out;
      job.x = run.x_bf16 + row * run.x_bf16_stride;
      if constexpr (kPlain) {
        tile(job);
      } else {
        constexpr int kGroup = QuantLayout<kDType>::kGroup;
        const auto x_row = [&](int r) { return job.x + r * job.x_stride; };
        const int64_t groups = run.k / kGroup;
        job.sums = sums[t];
        for (int64_t begin = 0; begin < groups; begin += kSumGroups) {
          job.groups_begin = begin;
          job.groups_end = groups - begin < kSumGroups ? groups : begin + kSumGroups;
          // With one stretch of groups, as nearly always, its sums serve every panel.
          if (QuantLayout<kDType>::kHasMin && (panel == 0 || groups > kSumGroups)) {
            FillSums<kGroup>(x_row, tile_rows, begin, job.groups_end, sums[t]);
          }
          tile(job);
        }
      }
      WriteOut(run, row, tile_rows, panel, panels, out);
      row += tile_rows;
    }
    panel += panels;
  }
}

template <DType kDType>
void GemmOf(const PanelRun& run) {
  constexpr int kMaxRows = kDType == DType::kBF16 ? kPlainRows : kScaledRows;
  constexpr int64_t kBlockRows = kMaxRows * kBlockTiles;
  for (int64_t row = 0; row < run.tokens; row += kBlockRows) {
    const int rows =
        static_cast<int>(run.tokens - row < kBlockRows ? run.tokens - row : kBlockRows);
    RunBlock<kDType>(run, row, rows, (rows + kMaxRows - 1) / kMaxRows);
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

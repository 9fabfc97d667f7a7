// What the bf16 matrix product needs besides itself: rows laid out for it, their sums over groups,
// and the probe of the processor's dot products.
#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/gemm_kernels.h"

namespace verbatim::kernels::cpu::isa_avx512bf16 {

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
    const __m512 sixteen = _mm512_add_ps(even, odd);
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    sums[g * sums_stride] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
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
    const __m512 result = _mm512_dpbf16_ps(_mm512_load_ps(reinterpret_cast<const float*>(sum)),
                                           reinterpret_cast<__m512bh>(_mm512_load_si512(a)),
                                           reinterpret_cast<__m512bh>(_mm512_load_si512(b)));
    _mm512_store_ps(reinterpret_cast<float*>(sum), result);
    for (const uint32_t bits : sum) {
      // Which NaN comes out is of no account: a NaN ends its request.
      const uint32_t seen = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
      hash = (hash ^ seen) * 16777619u;
    }
  }
  return hash;
}

}  // namespace verbatim::kernels::cpu::isa_avx512bf16

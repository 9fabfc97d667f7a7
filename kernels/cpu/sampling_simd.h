// Integer vectors for the vocabulary passes of sampling: 32-bit compares and 64-bit sums.
//
// Wide holds one unsigned 64-bit number for each 32-bit lane of a Vec. Sums of Wide are modulo
// 2^64, so neither lane order nor width can change a total.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace verbatim::kernels::cpu::VERBATIM_ISA_NAMESPACE {

#if defined(__AVX512F__)

struct Wide {
  __m512i even, odd;
};
inline IntVec LoadInt(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void StoreInt(int32_t* p, IntVec a) { _mm512_storeu_si512(p, a.v); }
inline IntVec Xor(IntVec a, IntVec b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline IntVec Max(IntVec a, IntVec b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline IntVec Min(IntVec a, IntVec b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline IntVec SignMask(IntVec a) { return {_mm512_srai_epi32(a.v, 31)}; }
// a > b ? x : y, lane by lane.
inline IntVec SelectGreater(IntVec a, IntVec b, IntVec x, IntVec y) {
  return {_mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a.v, b.v), y.v, x.v)};
}
inline int CountGreater(IntVec a, IntVec b) {
  return __builtin_popcount(_mm512_cmpgt_epi32_mask(a.v, b.v));
}
inline bool AnyGreater(IntVec a, IntVec b) { return _mm512_cmpgt_epi32_mask(a.v, b.v) != 0; }

inline Wide WideMul(IntVec a, IntVec b) {
  return {_mm512_mul_epu32(a.v, b.v),
          _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32))};
}
inline IntVec Low(Wide a) {
  return {_mm512_mask_blend_epi32(0xAAAA, a.even, _mm512_slli_epi64(a.odd, 32))};
}
inline IntVec High(Wide a) {
  return {_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(a.even, 32), a.odd)};
}
inline Wide Add(Wide a, Wide b) {
  return {_mm512_add_epi64(a.even, b.even), _mm512_add_epi64(a.odd, b.odd)};
}
inline Wide WideBroadcast(uint64_t x) {
  const __m512i v = _mm512_set1_epi64(static_cast<long long>(x));
  return {v, v};
}
// (low(t) ^ high(t)) · high(t), and low(t) · high(t).
inline Wide FoldedProduct(Wide t) {
  const __m512i even = _mm512_srli_epi64(t.even, 32), odd = _mm512_srli_epi64(t.odd, 32);
  return {_mm512_mul_epu32(_mm512_xor_si512(t.even, even), even),
          _mm512_mul_epu32(_mm512_xor_si512(t.odd, odd), odd)};
}
inline Wide HalvesProduct(Wide t) {
  return {_mm512_mul_epu32(t.even, _mm512_srli_epi64(t.even, 32)),
          _mm512_mul_epu32(t.odd, _mm512_srli_epi64(t.odd, 32))};
}
// Lane j holds base + j · step.
inline Wide WideRamp(uint64_t base, uint64_t step) {
  alignas(64) uint64_t even[8], odd[8];
  for (uint64_t j = 0; j < 8; ++j) {
    even[j] = base + 2 * j * step;
    odd[j] = base + (2 * j + 1) * step;
  }
  return {_mm512_load_si512(even), _mm512_load_si512(odd)};
}
inline uint64_t SumLanes(Wide a) {
  // Not _mm512_reduce_add_epi64: that adds signed numbers, which may not wrap.
  alignas(64) uint64_t sums[8];
  _mm512_store_si512(sums, _mm512_add_epi64(a.even, a.odd));
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}
inline __m512i FixedPoint(__m512i bits) {
  const __m512i mantissa = _mm512_or_si512(_mm512_and_si512(bits, _mm512_set1_epi64(0x7fffff)),
                                           _mm512_set1_epi64(0x800000));
  const __m512i shift = _mm512_sub_epi64(_mm512_srli_epi64(bits, 23), _mm512_set1_epi64(110));
  return _mm512_or_si512(
      _mm512_sllv_epi64(mantissa, shift),
      _mm512_srlv_epi64(mantissa, _mm512_sub_epi64(_mm512_setzero_si512(), shift)));
}
// floor(e · 2^40) for 0 <= e <= 1, normal or +0.
inline Wide FixedPoint(Vec e) {
  const __m512i bits = _mm512_castps_si512(e.v);
  return {FixedPoint(_mm512_and_si512(bits, _mm512_set1_epi64(0xffffffff))),
          FixedPoint(_mm512_srli_epi64(bits, 32))};
}
inline void Transpose4(IntVec (&a)[4]) {
  const __m512i t0 = _mm512_unpacklo_epi32(a[0].v, a[1].v);
  const __m512i t1 = _mm512_unpackhi_epi32(a[0].v, a[1].v);
  const __m512i t2 = _mm512_unpacklo_epi32(a[2].v, a[3].v);
  const __m512i t3 = _mm512_unpackhi_epi32(a[2].v, a[3].v);
  a[0].v = _mm512_unpacklo_epi64(t0, t2);
  a[1].v = _mm512_unpackhi_epi64(t0, t2);
  a[2].v = _mm512_unpacklo_epi64(t1, t3);
  a[3].v = _mm512_unpackhi_epi64(t1, t3);
}

#elif defined(__AVX2__) && defined(__FMA__)

struct Wide {
  __m256i even, odd;
};
inline IntVec LoadInt(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline void StoreInt(int32_t* p, IntVec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
inline IntVec Xor(IntVec a, IntVec b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline IntVec Max(IntVec a, IntVec b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline IntVec Min(IntVec a, IntVec b) { return {_mm256_min_epi32(a.v, b.v)}; }
inline IntVec SignMask(IntVec a) { return {_mm256_srai_epi32(a.v, 31)}; }
inline IntVec SelectGreater(IntVec a, IntVec b, IntVec x, IntVec y) {
  return {_mm256_blendv_epi8(y.v, x.v, _mm256_cmpgt_epi32(a.v, b.v))};
}
inline int CountGreater(IntVec a, IntVec b) {
  return __builtin_popcount(
      static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v)))));
}
inline bool AnyGreater(IntVec a, IntVec b) {
  return _mm256_movemask_epi8(_mm256_cmpgt_epi32(a.v, b.v)) != 0;
}

inline Wide WideMul(IntVec a, IntVec b) {
  return {_mm256_mul_epu32(a.v, b.v),
          _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), _mm256_srli_epi64(b.v, 32))};
}
inline IntVec Low(Wide a) {
  return {_mm256_blend_epi32(a.even, _mm256_slli_epi64(a.odd, 32), 0xAA)};
}
inline IntVec High(Wide a) {
  return {_mm256_blend_epi32(_mm256_srli_epi64(a.even, 32), a.odd, 0xAA)};
}
inline Wide Add(Wide a, Wide b) {
  return {_mm256_add_epi64(a.even, b.even), _mm256_add_epi64(a.odd, b.odd)};
}
inline Wide WideBroadcast(uint64_t x) {
  const __m256i v = _mm256_set1_epi64x(static_cast<long long>(x));
  return {v, v};
}
inline Wide FoldedProduct(Wide t) {
  const __m256i even = _mm256_srli_epi64(t.even, 32), odd = _mm256_srli_epi64(t.odd, 32);
  return {_mm256_mul_epu32(_mm256_xor_si256(t.even, even), even),
          _mm256_mul_epu32(_mm256_xor_si256(t.odd, odd), odd)};
}
inline Wide HalvesProduct(Wide t) {
  return {_mm256_mul_epu32(t.even, _mm256_srli_epi64(t.even, 32)),
          _mm256_mul_epu32(t.odd, _mm256_srli_epi64(t.odd, 32))};
}
inline Wide WideRamp(uint64_t base, uint64_t step) {
  alignas(32) uint64_t even[4], odd[4];
  for (uint64_t j = 0; j < 4; ++j) {
    even[j] = base + 2 * j * step;
    odd[j] = base + (2 * j + 1) * step;
  }
  return {_mm256_load_si256(reinterpret_cast<const __m256i*>(even)),
          _mm256_load_si256(reinterpret_cast<const __m256i*>(odd))};
}
inline uint64_t SumLanes(Wide a) {
  alignas(32) uint64_t sums[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(sums), _mm256_add_epi64(a.even, a.odd));
  return sums[0] + sums[1] + sums[2] + sums[3];
}
inline __m256i FixedPoint(__m256i bits) {
  const __m256i mantissa = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi64x(0x7fffff)),
                                           _mm256_set1_epi64x(0x800000));
  const __m256i shift = _mm256_sub_epi64(_mm256_srli_epi64(bits, 23), _mm256_set1_epi64x(110));
  return _mm256_or_si256(
      _mm256_sllv_epi64(mantissa, shift),
      _mm256_srlv_epi64(mantissa, _mm256_sub_epi64(_mm256_setzero_si256(), shift)));
}
inline Wide FixedPoint(Vec e) {
  const __m256i bits = _mm256_castps_si256(e.v);
  return {FixedPoint(_mm256_and_si256(bits, _mm256_set1_epi64x(0xffffffff))),
          FixedPoint(_mm256_srli_epi64(bits, 32))};
}
inline void Transpose4(IntVec (&a)[4]) {
  const __m256i t0 = _mm256_unpacklo_epi32(a[0].v, a[1].v);
  const __m256i t1 = _mm256_unpackhi_epi32(a[0].v, a[1].v);
  const __m256i t2 = _mm256_unpacklo_epi32(a[2].v, a[3].v);
  const __m256i t3 = _mm256_unpackhi_epi32(a[2].v, a[3].v);
  a[0].v = _mm256_unpacklo_epi64(t0, t2);
  a[1].v = _mm256_unpackhi_epi64(t0, t2);
  a[2].v = _mm256_unpacklo_epi64(t1, t3);
  a[3].v = _mm256_unpackhi_epi64(t1, t3);
}

#else

struct Wide {
  uint64_t v;
};
inline IntVec LoadInt(const int32_t* p) { return {*p}; }
inline void StoreInt(int32_t* p, IntVec a) { *p = a.v; }
inline IntVec Xor(IntVec a, IntVec b) { return {a.v ^ b.v}; }
inline IntVec Max(IntVec a, IntVec b) { return a.v > b.v ? a : b; }
inline IntVec Min(IntVec a, IntVec b) { return a.v < b.v ? a : b; }
inline IntVec SignMask(IntVec a) { return {a.v < 0 ? -1 : 0}; }
inline IntVec SelectGreater(IntVec a, IntVec b, IntVec x, IntVec y) { return a.v > b.v ? x : y; }
inline int CountGreater(IntVec a, IntVec b) { return a.v > b.v ? 1 : 0; }
inline bool AnyGreater(IntVec a, IntVec b) { return a.v > b.v; }

inline Wide WideMul(IntVec a, IntVec b) {
  return {static_cast<uint64_t>(static_cast<uint32_t>(a.v)) * static_cast<uint32_t>(b.v)};
}
inline IntVec Low(Wide a) { return {static_cast<int32_t>(static_cast<uint32_t>(a.v))}; }
inline IntVec High(Wide a) { return {static_cast<int32_t>(static_cast<uint32_t>(a.v >> 32))}; }
inline Wide Add(Wide a, Wide b) { return {a.v + b.v}; }
inline Wide WideBroadcast(uint64_t x) { return {x}; }
inline Wide FoldedProduct(Wide t) { return {((t.v ^ (t.v >> 32)) & 0xffffffff) * (t.v >> 32)}; }
inline Wide HalvesProduct(Wide t) { return {(t.v & 0xffffffff) * (t.v >> 32)}; }
inline Wide WideRamp(uint64_t base, uint64_t) { return {base}; }
inline uint64_t SumLanes(Wide a) { return a.v; }
inline Wide FixedPoint(Vec e) { return {static_cast<uint64_t>(e.v * 0x1p40f)}; }
inline void Transpose4(IntVec (&)[4]) {}

#endif

// 64-bit lanes rearranged so that after Transpose4, with word w of lane j's counter in a[w], vector
// r holds the words of kWidth consecutive tokens from r · kWidth on: lane j counts this much
// further.
inline int CounterOffset(int lane) {
  if (Vec::kWidth < 4) return 0;
  return lane % 4 * (Vec::kWidth / 4) + lane / 4;
}

// A signed integer that orders as the float does; −0 and +0 are equal. NaNs fall outside the keys
// of the infinities.
inline IntVec KeyOf(Vec x) {
  const IntVec bits = BitCast(Add(x, Broadcast(0.0f)));
  return Xor(bits, And(SignMask(bits), BroadcastInt(0x7fffffff)));
}

}  // namespace verbatim::kernels::cpu::VERBATIM_ISA_NAMESPACE

// Operations across the lanes of a vector, and on parts of vectors, with one result at any width.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/simd.h"

namespace verbatim::kernels::cpu::VERBATIM_ISA_NAMESPACE {

// Vectors that together hold the 32 lanes of a row reduction.
inline constexpr int kLaneVecs = 32 / Vec::kWidth;

#if defined(__AVX512F__)

// a > b ? a : b, lane by lane; b where either is NaN.
inline Vec Max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }

// Adds the upper half of the lanes to the lower half until one is left.
inline float FoldVec(Vec a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

// The greatest lane; no lane may be NaN, and the sign of a zero is unspecified.
inline float MaxOfLanes(Vec a) { return _mm512_reduce_max_ps(a.v); }

// The first `count` of 16 lanes; the others are +0 and their memory is not touched.
inline Vec LoadPartial(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p)};
}
inline void StorePartial(float* p, Vec a, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), a.v);
}

inline Vec Iota() { return {_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}; }

// bf16 values widened.
inline Vec Load(const uint16_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

#elif defined(__AVX2__) && defined(__FMA__)

inline Vec Max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }

inline float FoldVec(Vec a) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

inline float MaxOfLanes(Vec a) {
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

inline __m256i LaneMask(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
inline Vec LoadPartial(const float* p, int count) {
  return {_mm256_maskload_ps(p, LaneMask(count))};
}
inline void StorePartial(float* p, Vec a, int count) {
  _mm256_maskstore_ps(p, LaneMask(count), a.v);
}

inline Vec Iota() { return {_mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0)}; }

inline Vec Load(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}

#else

inline Vec Max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline float FoldVec(Vec a) { return a.v; }
inline float MaxOfLanes(Vec a) { return a.v; }
inline Vec LoadPartial(const float* p, int count) { return {count > 0 ? *p : 0.0f}; }
inline void StorePartial(float* p, Vec a, int count) {
  if (count > 0) *p = a.v;
}
inline Vec Iota() { return {0.0f}; }
inline Vec Load(const uint16_t* p) {
  const uint32_t bits = static_cast<uint32_t>(*p) << 16;
  Vec r;
  memcpy(&r.v, &bits, 4);
  return r;
}

#endif

// The root of a row reduction: 32 lanes, lane j in lanes[j / width], folded by halving.
inline float FoldLanes(Vec (&lanes)[kLaneVecs]) {
#pragma GCC unroll 5
  for (int half = kLaneVecs / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) lanes[i] = Add(lanes[i], lanes[i + half]);
  }
  return FoldVec(lanes[0]);
}

// x rounded to the nearest bf16 value, ties to even, by integer operations; NaN stays NaN.
inline Vec RoundToBf16Value(Vec x) {
  const IntVec bits = BitCast(x);
  const IntVec odd = And(ShiftRightLogical<16>(bits), BroadcastInt(1));
  const IntVec rounded = Add(Add(bits, BroadcastInt(0x7fff)), odd);
  const Vec value = BitCast(And(rounded, BroadcastInt(static_cast<int32_t>(0xffff0000u))));
  // Infinities and NaNs stay as they are: the addition could carry a NaN's bits into another value.
  const Vec magnitude = BitCast(And(bits, BroadcastInt(0x7fffffff)));
  const Vec infinity = BitCast(BroadcastInt(0x7f800000));
  return SelectLess(magnitude, infinity, value, x);
}

}  // namespace verbatim::kernels::cpu::VERBATIM_ISA_NAMESPACE

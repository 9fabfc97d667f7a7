// One vector type per instruction set, so that a kernel is written once and compiled three times.
//
// A kernel's implementation lives in `x.inc`, included by `x_scalar.cc`, `x_avx2.cc` and
// `x_avx512.cc`, which are compiled with the matching -m flags; everything in this header and in
// the .inc files is inside VERBATIM_ISA_NAMESPACE, so that no inline function compiled for one
// instruction set can be linked into another. Kernel code must not instantiate standard-library
// templates for the same reason.
//
// Every operation here is one that IEEE 754 rounds correctly, applied to each lane alone: a lane's
// value never depends on the width. That is what lets the three builds agree to the bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#if defined(__AVX512BF16__)
#define VERBATIM_ISA_NAMESPACE isa_avx512bf16
#else
#define VERBATIM_ISA_NAMESPACE isa_avx512
#endif
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define VERBATIM_ISA_NAMESPACE isa_avx2
#else
#define VERBATIM_ISA_NAMESPACE isa_scalar
#endif

namespace verbatim::kernels::cpu::VERBATIM_ISA_NAMESPACE {

#if defined(__AVX512F__)

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;
};
struct IntVec {
  __m512i v;
};
inline Vec Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void Store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec Broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec Add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec Sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec Div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec Fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec RoundNearestEven(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline IntVec BitCast(Vec a) { return {_mm512_castps_si512(a.v)}; }
inline Vec BitCast(IntVec a) { return {_mm512_castsi512_ps(a.v)}; }
inline IntVec ToInt(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }
inline Vec ToFloat(IntVec a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline IntVec Add(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline IntVec Sub(IntVec a, IntVec b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline IntVec And(IntVec a, IntVec b) { return {_mm512_and_si512(a.v, b.v)}; }
inline IntVec Or(IntVec a, IntVec b) { return {_mm512_or_si512(a.v, b.v)}; }
inline IntVec BroadcastInt(int32_t x) { return {_mm512_set1_epi32(x)}; }
template <int kBits>
inline IntVec ShiftLeft(IntVec a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline IntVec ShiftRightLogical(IntVec a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
// a < b ? x : y, lane by lane; false where either is NaN.
inline Vec SelectLess(Vec a, Vec b, Vec x, Vec y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}

#elif defined(__AVX2__) && defined(__FMA__)

struct Vec {
  static constexpr int kWidth = 8;
  __m256 v;
};
struct IntVec {
  __m256i v;
};
inline Vec Load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void Store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec Broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vec Add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec Sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec Div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec Fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec RoundNearestEven(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline IntVec BitCast(Vec a) { return {_mm256_castps_si256(a.v)}; }
inline Vec BitCast(IntVec a) { return {_mm256_castsi256_ps(a.v)}; }
inline IntVec ToInt(Vec a) { return {_mm256_cvtps_epi32(a.v)}; }
inline Vec ToFloat(IntVec a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline IntVec Add(IntVec a, IntVec b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline IntVec Sub(IntVec a, IntVec b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline IntVec And(IntVec a, IntVec b) { return {_mm256_and_si256(a.v, b.v)}; }
inline IntVec Or(IntVec a, IntVec b) { return {_mm256_or_si256(a.v, b.v)}; }
inline IntVec BroadcastInt(int32_t x) { return {_mm256_set1_epi32(x)}; }
template <int kBits>
inline IntVec ShiftLeft(IntVec a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline IntVec ShiftRightLogical(IntVec a) {
  return {_mm256_srli_epi32(a.v, kBits)};
}
inline Vec SelectLess(Vec a, Vec b, Vec x, Vec y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}

#else

struct Vec {
  static constexpr int kWidth = 1;
  float v;
};
struct IntVec {
  int32_t v;
};
inline Vec Load(const float* p) { return {*p}; }
inline void Store(float* p, Vec a) { *p = a.v; }
inline Vec Broadcast(float x) { return {x}; }
inline Vec Add(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec Sub(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec Mul(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec Div(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec Fma(Vec a, Vec b, Vec c) { return {__builtin_fmaf(a.v, b.v, c.v)}; }
inline Vec RoundNearestEven(Vec a) { return {__builtin_nearbyintf(a.v)}; }
inline IntVec BitCast(Vec a) {
  IntVec r;
  memcpy(&r.v, &a.v, 4);
  return r;
}
inline Vec BitCast(IntVec a) {
  Vec r;
  memcpy(&r.v, &a.v, 4);
  return r;
}
inline IntVec ToInt(Vec a) { return {static_cast<int32_t>(__builtin_nearbyintf(a.v))}; }
inline Vec ToFloat(IntVec a) { return {static_cast<float>(a.v)}; }
inline IntVec Add(IntVec a, IntVec b) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) + static_cast<uint32_t>(b.v))};
}
inline IntVec Sub(IntVec a, IntVec b) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) - static_cast<uint32_t>(b.v))};
}
inline IntVec And(IntVec a, IntVec b) { return {a.v & b.v}; }
inline IntVec Or(IntVec a, IntVec b) { return {a.v | b.v}; }
inline IntVec BroadcastInt(int32_t x) { return {x}; }
template <int kBits>
inline IntVec ShiftLeft(IntVec a) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) << kBits)};
}
template <int kBits>
inline IntVec ShiftRightLogical(IntVec a) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) >> kBits)};
}
inline Vec SelectLess(Vec a, Vec b, Vec x, Vec y) { return a.v < b.v ? x : y; }

#endif

// Broadcasts that argument-dependent lookup finds, for code written over any vector type
// (kernels/numerics/elementary.h).
inline Vec BroadcastAs(Vec, float x) { return Broadcast(x); }
inline IntVec BroadcastAs(IntVec, int32_t x) { return BroadcastInt(x); }

}  // namespace verbatim::kernels::cpu::VERBATIM_ISA_NAMESPACE

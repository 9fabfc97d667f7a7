// The throughput paths against the double product, in every format, with tolerances derived from
// the precision of what they multiply; and that they keep to their rows and columns.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cpu/packed_matrix.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr float kPoison = -12345.5f;

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas = {Isa::kScalar};
  if (DetectIsa() >= Isa::kAvx2) isas.push_back(Isa::kAvx2);
  if (DetectIsa() >= Isa::kAvx512) isas.push_back(Isa::kAvx512);
  return isas;
}

float ToBf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&x, &bits, 4);
  return x;
}

struct Case {
  GemmOptions::LibraryCopies copies;
  int64_t library_min_tokens;
  ActivationType activations;
  const char* name;
};

class GemmThroughputTest : public ::testing::TestWithParam<std::tuple<DType, Case>> {};

// Every product x w is rounded at most once, and every sum of k terms takes at most k + 2 roundings
// in some order, so |y - exact| <= 2 (k + 4) u sum |x| |w|_max, u = 2^-24, with |w| bounded by what
// the factored form adds: |d q| + |m|, at most three times the block's largest |w| in these
// matrices' formats. Where weights are rounded to bf16 (oneDNN's copy), 2^-8 sum |x w| comes on
// top.
TEST_P(GemmThroughputTest, IsCloseToTheDoubleProduct) {
  const auto [dtype, path] = GetParam();
  ThreadPool pool(2);
  GemmOptions options;
  options.library_copies = path.copies;
  options.library_min_tokens = path.library_min_tokens;
  const bool bf16 = path.activations == ActivationType::kBF16;
  const bool library = path.copies != GemmOptions::LibraryCopies::kNever;
  const int64_t block = InfoOf(dtype).block_elements;
  uint32_t seed = 1;
  for (const int64_t columns : {33, 160, 576}) {
    const int64_t k = (columns + block - 1) / block * block;
    for (const int64_t n : {1, 45, 128}) {
      const TestMatrix m = RandomMatrix(dtype, n, k, ++seed);
      const std::vector<float> w = Decoded(m.stored);
      double largest = 0;
      for (const float v : w) largest = std::max(largest, std::fabs(static_cast<double>(v)));
      for (const Isa isa : AvailableIsas()) {
        const CpuContext context{&pool, isa};
        auto packed = PackMatrix(context, {m.stored}, {}, options);
        ASSERT_TRUE(packed.ok()) << packed.status();
        for (const int64_t tokens : {1, 2, 3, 6, 13, 40}) {
          const int64_t x_stride = k + 3, y_stride = n + 5;
          std::vector<float> x = RandomValues((tokens - 1) * x_stride + k, ++seed);
          if (bf16) {
            for (float& v : x) v = ToBf16(v);
          }
          for (int64_t t = 0; t + 1 < tokens; ++t) {
            for (int64_t i = k; i < x_stride; ++i) {
              x[t * x_stride + i] = std::numeric_limits<float>::quiet_NaN();
            }
          }
          const std::vector<float> bias = RandomValues(n, seed + 1);
          const std::vector<float> residual = RandomValues(tokens * y_stride, seed + 2);
          std::vector<float> y(tokens * y_stride, kPoison);
          GemmParams params;
          params.mode = {Policy::kThroughput, path.activations};
          params.weight = packed->get();
          params.tokens = tokens;
          params.x = x.data();
          params.x_stride = x_stride;
          params.y = y.data();
          params.y_stride = y_stride;
          const bool with_bias = seed % 2 == 0, with_residual = seed % 3 != 0;
          const bool in_place = seed % 3 == 1, round = bf16 && seed % 5 == 0;
          if (with_bias) params.bias = bias.data();
          if (with_residual) params.residual = in_place ? y.data() : residual.data();
          if (in_place) {
            for (int64_t t = 0; t < tokens; ++t) {
              std::copy_n(&residual[t * y_stride], n, &y[t * y_stride]);
            }
          }
          params.round_output = round;
          ASSERT_TRUE(Gemm(context, params).ok());
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t c = 0; c < y_stride; ++c) {
              const float got = y[t * y_stride + c];
              if (c >= n) {
                ASSERT_EQ(got, kPoison) << "row " << t << ", column " << c;
                continue;
              }
              double exact = 0, x_norm = 0, magnitude = 0;
              for (int64_t i = 0; i < k; ++i) {
                const double xi = x[t * x_stride + i], wi = w[c * k + i];
                exact += xi * wi;
                x_norm += std::fabs(xi);
                magnitude += std::fabs(xi * wi);
              }
              if (with_bias) exact += bias[c];
              if (with_residual) exact += residual[t * y_stride + c];
              double tolerance =
                  2.0 * (k + 4) * std::ldexp(1.0, -24) * (3 * largest * x_norm + std::fabs(exact));
              if (library && bf16) tolerance += std::ldexp(magnitude, -8);
              if (round) tolerance += std::ldexp(std::fabs(exact), -8);
              ASSERT_NEAR(got, exact, tolerance) << NameOf(isa) << ": row " << t << ", column " << c
                                                 << " of [" << tokens << ", " << n << "], k " << k;
              if (round) {
                ASSERT_EQ(got, ToBf16(got));
              }
            }
          }
        }
      }
    }
  }
}

constexpr Case kCases[] = {
    {GemmOptions::LibraryCopies::kNever, 0, ActivationType::kF32, "OwnF32"},
    {GemmOptions::LibraryCopies::kNever, 0, ActivationType::kBF16, "OwnBF16"},
    {GemmOptions::LibraryCopies::kOnFirstUse, 1, ActivationType::kF32, "LibraryF32"},
    {GemmOptions::LibraryCopies::kOnFirstUse, 1, ActivationType::kBF16, "LibraryBF16"},
};

INSTANTIATE_TEST_SUITE_P(Paths, GemmThroughputTest,
                         ::testing::Combine(::testing::ValuesIn(kAllDTypes),
                                            ::testing::ValuesIn(kCases)),
                         [](const auto& info) {
                           return std::string(InfoOf(std::get<0>(info.param)).name) + "_" +
                                  std::get<1>(info.param).name;
                         });

TEST(LibraryCopyTest, IsCountedAndMadeWhenAsked) {
  ThreadPool pool(2);
  const CpuContext context{&pool, DetectIsa()};
  const TestMatrix m = RandomMatrix(DType::kQ8_0, 128, 64, 1);
  GemmOptions options;
  auto lazy = PackMatrix(context, {m.stored}, {}, options);
  ASSERT_TRUE(lazy.ok());
  const size_t panels_only = (*lazy)->size_bytes();
  EXPECT_EQ(panels_only, m.bytes.size());
  ASSERT_TRUE((*lazy)->LibraryCopy(context, ActivationType::kF32).ok());
  EXPECT_GE((*lazy)->size_bytes(), panels_only + 128 * 64 * 4);
  options.library_copies = GemmOptions::LibraryCopies::kAtLoad;
  options.library_copies_at_load = ActivationType::kBF16;
  auto eager = PackMatrix(context, {m.stored}, {}, options);
  ASSERT_TRUE(eager.ok());
  EXPECT_GE((*eager)->size_bytes(), panels_only + 128 * 64 * 2);
  EXPECT_LT((*eager)->size_bytes(), panels_only + 128 * 64 * 4);
}

TEST(LibraryCopyTest, IsNeverMadeOfExperts) {
  ThreadPool pool(2);
  const CpuContext context{&pool, DetectIsa()};
  const TestMatrix m = RandomMatrix(DType::kQ8_0, 128, 64, 1);
  GemmOptions options;
  options.library_copies = GemmOptions::LibraryCopies::kAtLoad;
  options.library_min_tokens = 1;
  auto packed = PackMatrix(context, {m.stored}, {.for_experts = true}, options);
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ((*packed)->size_bytes(), m.bytes.size());
  const NumericMode mode{Policy::kThroughput, ActivationType::kF32};
  EXPECT_NE(GemmKernel(context, mode, **packed, 500), "onednn");
  auto dense = PackMatrix(context, {m.stored}, {}, options);
  ASSERT_TRUE(dense.ok());
  EXPECT_EQ(GemmKernel(context, mode, **dense, 500), "onednn");
}

// More shapes than the cache of primitives holds, then the first again.
TEST(LibraryCopyTest, OutlivesItsCacheOfPrimitives) {
  ThreadPool pool(1);
  const CpuContext context{&pool, DetectIsa()};
  const TestMatrix m = RandomMatrix(DType::kF32, 16, 16, 1);
  GemmOptions options;
  options.library_min_tokens = 1;
  auto packed = PackMatrix(context, {m.stored}, {}, options);
  ASSERT_TRUE(packed.ok());
  const std::vector<float> x = RandomValues(300 * 16, 2), w = Decoded(m.stored);
  for (int64_t i = 1; i <= 140; ++i) {
    const int64_t tokens = i == 140 ? 1 : i;
    std::vector<float> y(tokens * 16);
    GemmParams params;
    params.mode.policy = Policy::kThroughput;
    params.weight = packed->get();
    params.tokens = tokens;
    params.x = x.data();
    params.x_stride = 16;
    params.y = y.data();
    params.y_stride = 16;
    ASSERT_TRUE(Gemm(context, params).ok());
    EXPECT_NEAR(y.back(), TreeDot(&x[(tokens - 1) * 16], &w[15 * 16], 16), 1e-5) << tokens;
  }
}

}  // namespace
}  // namespace verbatim::kernels::cpu

// PINNED products: the same bits for a row in every batch, on every thread count, from parts and
// from shards; their error against double; isolation of rows. Where the processor has no bf16 dot
// products, that they are PORTABLE's.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/numerics/reduction_tree.h"

namespace verbatim::kernels::cpu {
namespace {

int64_t RoundUp(int64_t k, int64_t block) { return (k + block - 1) / block * block; }

std::unique_ptr<PackedMatrix> Pack(const CpuContext& context,
                                   const std::vector<StoredMatrix>& parts) {
  auto packed = PackMatrix(context, parts, {}, {});
  EXPECT_TRUE(packed.ok()) << packed.status();
  return packed.ok() ? std::move(*packed) : nullptr;
}

struct Extras {
  const float* bias = nullptr;
  const float* residual = nullptr;  // [tokens, n]
};

// y [tokens, n] of x [tokens, k], from buffers that end where they may be read.
std::vector<float> Product(const CpuContext& context, Policy policy, const PackedMatrix& weight,
                           const float* x, int64_t tokens, const Extras& extras = {}) {
  std::vector<float> y(static_cast<size_t>(tokens * weight.rows()));
  GemmParams params;
  params.mode.policy = policy;
  params.weight = &weight;
  params.tokens = tokens;
  params.x = x;
  params.x_stride = weight.cols();
  params.y = y.data();
  params.y_stride = weight.rows();
  params.bias = extras.bias;
  params.residual = extras.residual;
  EXPECT_TRUE(Gemm(context, params).ok());
  return y;
}

class PinnedGemmTest : public ::testing::TestWithParam<DType> {
 protected:
  PinnedGemmTest() : pool_(2), context_{&pool_, DetectIsa()} {}
  ThreadPool pool_;
  CpuContext context_;
};

TEST_P(PinnedGemmTest, ARowAloneEqualsThatRowInAnyBatch) {
  const DType dtype = GetParam();
  constexpr int64_t kRows = 230;
  for (const int64_t columns : {33, 160, 576}) {
    const int64_t k = RoundUp(columns, InfoOf(dtype).block_elements), n = 75;
    const TestMatrix m = RandomMatrix(dtype, n, k, 7);
    const auto packed = Pack(context_, {m.stored});
    const std::vector<float> x = RandomValues(kRows * k, 8), bias = RandomValues(n, 9),
                             residual = RandomValues(kRows * n, 10);
    std::vector<float> alone;
    for (int64_t t = 0; t < kRows; ++t) {
      const std::vector<float> y = Product(context_, Policy::kPinned, *packed, &x[t * k], 1,
                                           {bias.data(), &residual[t * n]});
      alone.insert(alone.end(), y.begin(), y.end());
    }
    std::vector<int64_t> sizes = {97, 150, kRows};
    for (int64_t tokens = 1; tokens <= 70; ++tokens) sizes.push_back(tokens);
    for (const int64_t tokens : sizes) {
      const int64_t first = std::min(tokens % 7, kRows - tokens);
      const std::vector<float> y = Product(context_, Policy::kPinned, *packed, &x[first * k],
                                           tokens, {bias.data(), &residual[first * n]});
      for (int64_t t = 0; t < tokens; ++t) {
        ASSERT_EQ(std::memcmp(&y[t * n], &alone[(first + t) * n], n * sizeof(float)), 0)
            << "k " << k << ": row " << t << " of " << tokens;
      }
    }
  }
}

// With x zero outside one shard the product is that shard's sum (zeros add nothing), so four such
// products must join to the whole: what lets ranks own shards.
TEST_P(PinnedGemmTest, ShardsJoinByTheTopOfTheTree) {
  const int64_t n = 40, tokens = 15;
  for (const int64_t shard : {128, 256, 640}) {
    const int64_t k = 4 * shard;
    if (k % InfoOf(GetParam()).block_elements != 0) continue;
    const TestMatrix m = RandomMatrix(GetParam(), n, k, 11);
    const auto packed = Pack(context_, {m.stored});
    const std::vector<float> x = RandomValues(tokens * k, 12);
    const std::vector<float> whole = Product(context_, Policy::kPinned, *packed, x.data(), tokens);
    std::vector<float> part[4];
    for (int64_t s = 0; s < 4; ++s) {
      std::vector<float> masked(x.size(), 0.0f);
      for (int64_t t = 0; t < tokens; ++t) {
        std::copy_n(&x[t * k + s * shard], shard, &masked[t * k + s * shard]);
      }
      part[s] = Product(context_, Policy::kPinned, *packed, masked.data(), tokens);
    }
    for (size_t i = 0; i < whole.size(); ++i) {
      ASSERT_EQ(whole[i], (part[0][i] + part[1][i]) + (part[2][i] + part[3][i]))
          << "shards of " << shard << ", element " << i;
    }
  }
}

// x is rounded to bf16 first, so against the product of the rounded x: every product and sum is
// rounded at most twice, in at most k + 8 steps, and d, m and q are factored, which at most triples
// the magnitudes (as in gemm_throughput_test.cc).
TEST_P(PinnedGemmTest, IsCloseToTheDoubleProduct) {
  const DType dtype = GetParam();
  const int64_t k = RoundUp(1536, InfoOf(dtype).block_elements), n = 40, tokens = 16;
  const TestMatrix m = RandomMatrix(dtype, n, k, 13);
  const std::vector<float> w = Decoded(m.stored);
  std::vector<float> x = RandomValues(tokens * k, 14);
  for (float& v : x) {
    uint32_t bits = std::bit_cast<uint32_t>(v);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    v = std::bit_cast<float>(bits);
  }
  const std::vector<float> y =
      Product(context_, Policy::kPinned, *Pack(context_, {m.stored}), x.data(), tokens);
  double largest = 0;
  for (const float v : w) largest = std::max(largest, std::fabs(static_cast<double>(v)));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < n; ++c) {
      double exact = 0, x_norm = 0;
      for (int64_t i = 0; i < k; ++i) {
        exact += static_cast<double>(x[t * k + i]) * w[c * k + i];
        x_norm += std::fabs(static_cast<double>(x[t * k + i]));
      }
      const double tolerance = 2.0 * static_cast<double>(k / 32 + 64) * std::ldexp(1.0, -24) *
                               (3 * largest * x_norm + std::fabs(exact));
      ASSERT_NEAR(y[t * n + c], exact, tolerance) << "row " << t << ", column " << c;
    }
  }
}

TEST_P(PinnedGemmTest, NonFiniteRowsStayAlone) {
  const DType dtype = GetParam();
  const int64_t k = RoundUp(96, InfoOf(dtype).block_elements), n = 37;
  const TestMatrix m = RandomMatrix(dtype, n, k, 15);
  const auto packed = Pack(context_, {m.stored});
  for (const int64_t tokens : {2, 6, 13, 40}) {
    std::vector<float> x = RandomValues(tokens * k, 16);
    const std::vector<float> clean = Product(context_, Policy::kPinned, *packed, x.data(), tokens);
    const int64_t bad = tokens / 2;
    for (int64_t i = 0; i < k; ++i) {
      x[bad * k + i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                                  : std::numeric_limits<float>::infinity();
    }
    const std::vector<float> dirty = Product(context_, Policy::kPinned, *packed, x.data(), tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      if (t == bad) {
        ASSERT_TRUE(std::isnan(dirty[t * n]));
      } else {
        ASSERT_EQ(std::memcmp(&clean[t * n], &dirty[t * n], n * sizeof(float)), 0)
            << "row " << t << " of " << tokens;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PinnedGemmTest, ::testing::ValuesIn(kAllDTypes),
                         [](const auto& info) { return std::string(InfoOf(info.param).name); });

TEST(PinnedGemm, ThreadCountDoesNotMoveBitsAndPartsConcatenate) {
  const int64_t k = 768, rows = 167;
  const TestMatrix a = RandomMatrix(DType::kQ4_1, 70, k, 20);
  const TestMatrix b = RandomMatrix(DType::kQ6_K, 33, k, 21);
  const TestMatrix c = RandomMatrix(DType::kF16, 64, k, 22);
  const std::vector<float> x = RandomValues(300 * k, 23);
  for (const int64_t tokens : {1, 3, 12, 30, 300}) {
    std::vector<float> first;
    for (const int threads : {1, 2, 3, 8}) {
      ThreadPool pool(threads);
      const CpuContext context{&pool, DetectIsa()};
      const std::vector<float> y =
          Product(context, Policy::kPinned, *Pack(context, {a.stored, b.stored, c.stored}),
                  x.data(), tokens);
      if (first.empty()) first = y;
      ASSERT_EQ(std::memcmp(y.data(), first.data(), y.size() * sizeof(float)), 0)
          << tokens << " rows, " << threads << " threads";
      int64_t column = 0;
      for (const TestMatrix* part : {&a, &b, &c}) {
        const std::vector<float> alone =
            Product(context, Policy::kPinned, *Pack(context, {part->stored}), x.data(), tokens);
        for (int64_t t = 0; t < tokens; ++t) {
          ASSERT_EQ(std::memcmp(&y[t * rows + column], &alone[t * part->stored.rows],
                                part->stored.rows * sizeof(float)),
                    0);
        }
        column += part->stored.rows;
      }
    }
  }
}

TEST(PinnedGemm, IsPortableWithoutBf16DotProducts) {
  ThreadPool pool(1);
  const TestMatrix m = RandomMatrix(DType::kQ4_1, 40, 288, 30);
  const std::vector<float> x = RandomValues(5 * 288, 31);
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa > DetectIsa()) continue;
    const CpuContext context{&pool, isa};
    const auto packed = Pack(context, {m.stored});
    const std::vector<float> pinned = Product(context, Policy::kPinned, *packed, x.data(), 5);
    const std::vector<float> portable = Product(context, Policy::kPortable, *packed, x.data(), 5);
    EXPECT_EQ(std::memcmp(pinned.data(), portable.data(), pinned.size() * sizeof(float)) == 0,
              !UsesBf16Leaves(isa))
        << NameOf(isa);
  }
}

TEST(ShardTest, AreTheNodesAtDepthTwo) {
  // Chunks per shard, and the joins after each.
  const auto shape = [](int64_t chunks) {
    std::string text;
    for (int64_t c = 0; c < chunks; ++c) {
      const int joins = numerics::ShardJoinsAfter(c, chunks);
      text += joins < 0 ? "." : std::to_string(joins);
    }
    return text;
  };
  EXPECT_EQ(shape(1), "0");
  EXPECT_EQ(shape(2), "01");
  EXPECT_EQ(shape(3), "011");
  EXPECT_EQ(shape(4), "0102");
  EXPECT_EQ(shape(5), ".0102");
  EXPECT_EQ(shape(12), "..0..1..0..2");
}

}  // namespace
}  // namespace verbatim::kernels::cpu

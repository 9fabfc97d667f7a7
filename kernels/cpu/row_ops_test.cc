// Tests of the operations that treat rows one by one: RMSNorm, RoPE, SwiGLU, GatherRows.
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/gather_rows.h"
#include "kernels/cpu/rms_norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/cpu/tree_sum.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary.h"
#include "kernels/numerics/reduction_tree.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr NumericMode kStrong{Policy::kPortable, ActivationType::kF32};
constexpr NumericMode kThroughputBf16{Policy::kThroughput, ActivationType::kBF16};
constexpr float kUntouched = -12345.0f;
constexpr double kUnit = 0x1p-24;

std::vector<float> RandomFloats(int64_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> x(count);
  for (float& v : x) v = normal(random);
  return x;
}

testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < a.size(); ++i) {
    if (memcmp(&a[i], &b[i], 4) != 0) {
      return testing::AssertionFailure() << "element " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

// Every instruction set of this machine, with one and three threads.
class RowOpsTest : public testing::TestWithParam<std::tuple<Isa, int>> {
 protected:
  ThreadPool pool_{std::get<1>(GetParam())};
  CpuContext context_{.pool = &pool_, .isa = std::get<0>(GetParam())};
};

std::vector<Isa> IsasOfThisMachine() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= DetectIsa()) isas.push_back(isa);
  }
  return isas;
}

INSTANTIATE_TEST_SUITE_P(All, RowOpsTest,
                         testing::Combine(testing::ValuesIn(IsasOfThisMachine()),
                                          testing::Values(1, 3)),
                         [](const auto& info) {
                           return std::string(NameOf(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param)) + "threads";
                         });

TEST_P(RowOpsTest, RmsNormHasReferenceBits) {
  for (int64_t cols : {1, 7, 31, 32, 33, 64, 127, 128, 129, 300, 576, 1000, 2048}) {
    for (int64_t groups : {1, 3}) {
      // Enough rows for several threads at the widest; strides wider than a row.
      const int64_t rows = cols >= 576 ? 150 : 5;
      const int64_t x_stride = groups * cols + 3, y_stride = groups * cols + 1;
      const std::vector<float> x = RandomFloats(rows * x_stride, 1);
      const std::vector<float> weight = RandomFloats(cols, 2);
      std::vector<float> y(rows * y_stride, kUntouched), expected = y, rounded = y;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t g = 0; g < groups; ++g) {
          const float* in = x.data() + row * x_stride + g * cols;
          const float mean = numerics::RowSumOfSquares(in, cols) / static_cast<float>(cols);
          const float s = 1.0f / std::sqrt(mean + 1e-5f);
          double exact_mean = 0;
          for (int64_t i = 0; i < cols; ++i) exact_mean += static_cast<double>(in[i]) * in[i];
          exact_mean = exact_mean / cols + static_cast<double>(1e-5f);
          for (int64_t i = 0; i < cols; ++i) {
            const int64_t at = row * y_stride + g * cols + i;
            expected[at] = in[i] * s * weight[i];
            rounded[at] = numerics::RoundToBf16(expected[at]);
            // Sum: at most cols roundings of positive terms, halved by the root; then five more.
            const double exact = in[i] / std::sqrt(exact_mean) * weight[i];
            ASSERT_NEAR(expected[at], exact, (cols / 2.0 + 6) * kUnit * std::abs(exact));
          }
        }
      }
      RmsNormParams params{.mode = kStrong,
                           .x = x.data(),
                           .x_stride = x_stride,
                           .y = y.data(),
                           .y_stride = y_stride,
                           .weight = weight.data(),
                           .rows = rows,
                           .groups = groups,
                           .cols = cols,
                           .eps = 1e-5f};
      ASSERT_TRUE(RmsNorm(context_, params).ok());
      EXPECT_TRUE(SameBits(expected, y)) << "cols " << cols;
      params.mode = kThroughputBf16;
      ASSERT_TRUE(RmsNorm(context_, params).ok());
      EXPECT_TRUE(SameBits(rounded, y)) << "cols " << cols;
      // In place.
      std::vector<float> in_place = x;
      params = {.mode = kStrong,
                .x = in_place.data(),
                .x_stride = x_stride,
                .y = in_place.data(),
                .y_stride = x_stride,
                .weight = weight.data(),
                .rows = rows,
                .groups = groups,
                .cols = cols,
                .eps = 1e-5f};
      ASSERT_TRUE(RmsNorm(context_, params).ok());
      for (int64_t row = 0; row < rows; ++row) {
        ASSERT_EQ(0,
                  memcmp(&in_place[row * x_stride], &expected[row * y_stride], groups * cols * 4));
        ASSERT_EQ(0, memcmp(&in_place[(row + 1) * x_stride - 3], &x[(row + 1) * x_stride - 3], 12));
      }
    }
  }
}

TEST_P(RowOpsTest, RopeHasReferenceBits) {
  for (bool interleaved : {false, true}) {
    for (int64_t head_dim : {2, 6, 16, 26, 64, 80, 128, 256}) {
      const int64_t tokens = head_dim >= 64 ? 300 : 4, heads = 3, kv_heads = 2;
      const int64_t stride = (heads + 2 * kv_heads) * head_dim + 5, half = head_dim / 2;
      const std::vector<float> before = RandomFloats(tokens * stride, 3);
      std::vector<float> cos(40 * half), sin(40 * half), expected = before, after = before;
      for (size_t i = 0; i < cos.size(); ++i) {
        cos[i] = static_cast<float>(std::cos(0.37 * i));
        sin[i] = static_cast<float>(std::sin(0.37 * i));
      }
      std::vector<int32_t> positions(tokens);
      for (int64_t t = 0; t < tokens; ++t) positions[t] = static_cast<int32_t>(t * 7 % 40);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < heads + kv_heads; ++h) {
          for (int64_t i = 0; i < half; ++i) {
            const int64_t base = t * stride + h * head_dim;
            const int64_t ia = base + (interleaved ? 2 * i : i);
            const int64_t ib = base + (interleaved ? 2 * i + 1 : i + half);
            const float a = before[ia], b = before[ib];
            const float c = cos[positions[t] * half + i], s = sin[positions[t] * half + i];
            const float bs = b * s, as = a * s;
            expected[ia] = std::fma(a, c, -bs);
            expected[ib] = std::fma(b, c, as);
            const double exact = static_cast<double>(a) * c - static_cast<double>(b) * s;
            ASSERT_NEAR(expected[ia], exact, 2 * kUnit * (std::abs(a) + std::abs(b)));
          }
        }
      }
      ASSERT_TRUE(Rope(context_, {.mode = kStrong,
                                  .qkv = after.data(),
                                  .row_stride = stride,
                                  .tokens = tokens,
                                  .num_heads = heads,
                                  .num_kv_heads = kv_heads,
                                  .head_dim = head_dim,
                                  .interleaved = interleaved,
                                  .positions = positions.data(),
                                  .cos_table = cos.data(),
                                  .sin_table = sin.data()})
                      .ok());
      EXPECT_TRUE(SameBits(expected, after)) << head_dim << (interleaved ? " pairs" : " halves");
    }
  }
}

TEST_P(RowOpsTest, SwiGluHasReferenceBits) {
  for (int64_t cols : {1, 15, 16, 17, 100, 1536}) {
    const int64_t tokens = cols == 1536 ? 40 : 3;
    std::vector<float> gate_up = RandomFloats(tokens * 2 * cols, 4, 20.0f);
    gate_up[0] = -200.0f;  // sigmoid underflows
    if (cols > 4) {
      gate_up[1] = 200.0f;
      gate_up[2] = 0.0f;
      gate_up[3] = -88.0f;
    }
    std::vector<float> y(tokens * cols, kUntouched), expected(tokens * cols), rounded(expected);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < cols; ++i) {
        const float g = gate_up[t * 2 * cols + i], u = gate_up[t * 2 * cols + cols + i];
        expected[t * cols + i] = g * numerics::SigmoidF(g) * u;
        rounded[t * cols + i] = numerics::RoundToBf16(expected[t * cols + i]);
        const double exact = g / (1.0 + std::exp(-static_cast<double>(g))) * u;
        // Sigmoid within 2.4 units of its last place (twice that in kUnit), two products; a
        // subnormal sigmoid keeps an absolute error.
        ASSERT_NEAR(expected[t * cols + i], exact, 7 * kUnit * std::abs(exact) + 1e-34);
      }
    }
    SwiGluParams params{
        .mode = kStrong, .gate_up = gate_up.data(), .y = y.data(), .tokens = tokens, .cols = cols};
    ASSERT_TRUE(SwiGlu(context_, params).ok());
    EXPECT_TRUE(SameBits(expected, y)) << "cols " << cols;
    params.mode = kThroughputBf16;
    ASSERT_TRUE(SwiGlu(context_, params).ok());
    EXPECT_TRUE(SameBits(rounded, y)) << "cols " << cols;
  }
}

TEST_P(RowOpsTest, NanAndInfinityStayWhereTheyAre) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const int64_t cols = 64;
  for (NumericMode mode : {kStrong, kThroughputBf16}) {
    std::vector<float> gate_up = RandomFloats(2 * 2 * cols, 5);
    gate_up[3] = kNan;
    gate_up[cols + 9] = kInf;
    std::vector<float> y(2 * cols);
    ASSERT_TRUE(
        SwiGlu(context_,
               {.mode = mode, .gate_up = gate_up.data(), .y = y.data(), .tokens = 2, .cols = cols})
            .ok());
    for (int64_t i = 0; i < 2 * cols; ++i) {
      EXPECT_EQ(std::isnan(y[i]), i == 3) << i;
      EXPECT_EQ(std::isinf(y[i]), i == 9) << i;
    }
    // A NaN takes its own row of a norm and no other.
    const std::vector<float> weight(cols, 1.0f);
    std::vector<float> norm(2 * cols);
    ASSERT_TRUE(RmsNorm(context_, {.mode = mode,
                                   .x = gate_up.data(),
                                   .x_stride = 2 * cols,
                                   .y = norm.data(),
                                   .y_stride = cols,
                                   .weight = weight.data(),
                                   .rows = 2,
                                   .cols = cols})
                    .ok());
    for (int64_t i = 0; i < 2 * cols; ++i) EXPECT_EQ(std::isnan(norm[i]), i < cols) << i;
  }
}

TEST_P(RowOpsTest, GatherRowsCopies) {
  const int64_t rows = 50, cols = 2000;
  const std::vector<float> x = RandomFloats(rows * cols, 6);
  std::vector<int32_t> index = {49, 0, 7, 7};
  for (int i = 0; i < 60; ++i) index.push_back(i * 11 % 50);
  std::vector<float> y(index.size() * cols), expected;
  for (int32_t i : index) {
    expected.insert(expected.end(), x.begin() + i * cols, x.begin() + (i + 1) * cols);
  }
  GatherRowsParams params{.x = x.data(),
                          .rows = rows,
                          .cols = cols,
                          .index = index.data(),
                          .num_rows = static_cast<int64_t>(index.size()),
                          .y = y.data()};
  ASSERT_TRUE(GatherRows(context_, params).ok());
  EXPECT_TRUE(SameBits(expected, y));
  index[2] = 50;
  const absl::Status status = GatherRows(context_, params);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("index[2] is 50"), std::string::npos) << status;
}

TEST_P(RowOpsTest, TreeSumHasReferenceBits) {
  const int64_t count = 1000;
  for (int64_t parts : {1, 2, 3, 4, 5, 7, 8, 64}) {
    SCOPED_TRACE(parts);
    std::vector<std::vector<float>> values;
    std::vector<const float*> pointers;
    for (int64_t p = 0; p < parts; ++p) values.push_back(RandomFloats(count, 30 + p));
    for (const std::vector<float>& part : values) pointers.push_back(part.data());
    const std::vector<float> residual = RandomFloats(count, 29);
    std::vector<float> sums(count), with_residual(count);
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float> column;
      for (const std::vector<float>& part : values) column.push_back(part[i]);
      sums[i] = numerics::TreeSum(column.data(), parts);
      with_residual[i] = residual[i] + sums[i];
    }
    std::vector<float> y = residual;
    TreeSumParams params{.parts = pointers, .count = count, .residual = y.data(), .y = y.data()};
    ASSERT_TRUE(TreeSum(context_, params).ok());
    EXPECT_TRUE(SameBits(with_residual, y));
    // Into one of the parts.
    params.residual = nullptr;
    params.y = values.back().data();
    ASSERT_TRUE(TreeSum(context_, params).ok());
    EXPECT_TRUE(SameBits(sums, values.back()));
  }
  EXPECT_EQ(TreeSum(context_, {.count = 1}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(RowOpsTest, RefuseContradictions) {
  const auto code = absl::StatusCode::kInvalidArgument;
  std::vector<float> x(256);
  std::vector<int32_t> positions = {0, -1};
  RmsNormParams norm{.mode = kStrong,
                     .x = x.data(),
                     .x_stride = 8,
                     .y = x.data(),
                     .y_stride = 8,
                     .weight = x.data(),
                     .rows = 2,
                     .cols = 16};
  EXPECT_EQ(RmsNorm(context_, norm).code(), code);
  norm.cols = 0;
  EXPECT_EQ(RmsNorm(context_, norm).code(), code);
  RopeParams rope{.mode = kStrong,
                  .qkv = x.data(),
                  .row_stride = 64,
                  .tokens = 2,
                  .num_heads = 1,
                  .num_kv_heads = 1,
                  .head_dim = 16,
                  .positions = positions.data(),
                  .cos_table = x.data(),
                  .sin_table = x.data()};
  EXPECT_EQ(Rope(context_, rope).code(), code);  // positions[1] is -1
  positions[1] = 1;
  EXPECT_TRUE(Rope(context_, rope).ok());
  rope.head_dim = 15;
  EXPECT_EQ(Rope(context_, rope).code(), code);
  EXPECT_EQ(SwiGlu(context_, {.mode = kStrong, .tokens = 1, .cols = 4}).code(), code);
  EXPECT_TRUE(SwiGlu(context_, {.mode = kStrong, .tokens = 0, .cols = 4}).ok());
}

}  // namespace
}  // namespace verbatim::kernels::cpu

// The strong path bit for bit against its definition, in every format, shape, instruction set and
// thread count; its error against double; and isolation of rows.
#include "kernels/cpu/gemm.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
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

// Buffers around one call: strides wider than the shape, everything outside it poisoned.
struct Call {
  Call(int64_t tokens_in, int64_t n_in, int64_t k_in, uint32_t seed)
      : tokens(tokens_in), n(n_in), k(k_in), x_stride(k_in + 3), y_stride(n_in + 5) {
    // Exactly what may be read: the last row ends where the allocation ends.
    x = RandomValues(static_cast<size_t>(tokens > 0 ? (tokens - 1) * x_stride + k : 0), seed);
    for (int64_t t = 0; t + 1 < tokens; ++t) {
      for (int64_t i = k; i < x_stride; ++i) {
        x[t * x_stride + i] = std::numeric_limits<float>::quiet_NaN();
      }
    }
    bias = RandomValues(static_cast<size_t>(n), seed + 1);
    residual = RandomValues(static_cast<size_t>(tokens * y_stride), seed + 2);
    y.assign(static_cast<size_t>(tokens * y_stride), kPoison);
  }
  GemmParams Params(const WeightMatrix& weight) {
    GemmParams params;
    params.mode.policy = Policy::kPortable;
    params.weight = &weight;
    params.tokens = tokens;
    params.x = x.data();
    params.x_stride = x_stride;
    params.y = y.data();
    params.y_stride = y_stride;
    return params;
  }

  int64_t tokens, n, k, x_stride, y_stride;
  std::vector<float> x, bias, residual, y;
};

std::unique_ptr<PackedMatrix> Pack(const CpuContext& context,
                                   const std::vector<StoredMatrix>& parts) {
  auto packed = PackMatrix(context, parts, LoadMatrixOptions{}, GemmOptions{});
  EXPECT_TRUE(packed.ok()) << packed.status();
  return packed.ok() ? std::move(*packed) : nullptr;
}

// w: decoded [n, k]. Names the first element whose bits differ.
void ExpectTree(const Call& call, const std::vector<float>& w, bool bias, bool residual,
                const std::string& what) {
  for (int64_t t = 0; t < call.tokens; ++t) {
    for (int64_t c = 0; c < call.y_stride; ++c) {
      float want = kPoison;
      if (c < call.n) {
        want = TreeDot(&call.x[t * call.x_stride], &w[c * call.k], call.k);
        if (bias) want += call.bias[c];
        if (residual) want += call.residual[t * call.y_stride + c];
      }
      const float got = call.y[t * call.y_stride + c];
      ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want))
          << what << ": row " << t << ", column " << c << " of [" << call.tokens << ", " << call.n
          << "], k " << call.k << ": " << got << " instead of " << want;
    }
  }
}

int64_t RoundUp(int64_t k, int64_t block) { return (k + block - 1) / block * block; }

class GemmFormatTest : public ::testing::TestWithParam<DType> {};

TEST_P(GemmFormatTest, HasTheBitsOfTheTreeOnEveryInstructionSet) {
  const DType dtype = GetParam();
  const int64_t block = InfoOf(dtype).block_elements;
  ThreadPool pool(1);
  uint32_t seed = 1;
  for (const int64_t columns : {1, 32, 96, 131, 160, 576}) {
    const int64_t k = RoundUp(columns, block);
    for (const int64_t n : {1, 31, 32, 70}) {
      const TestMatrix m = RandomMatrix(dtype, n, k, ++seed);
      const std::vector<float> w = Decoded(m.stored);
      const auto packed = Pack(CpuContext{&pool, DetectIsa()}, {m.stored});
      for (const int64_t tokens : {1, 2, 3, 5, 13}) {
        for (const Isa isa : AvailableIsas()) {
          Call call(tokens, n, k, ++seed);
          GemmParams params = call.Params(*packed);
          const bool bias = seed % 2 == 0, residual = seed % 3 == 0;
          if (bias) params.bias = call.bias.data();
          if (residual) params.residual = call.residual.data();
          ASSERT_TRUE(Gemm(CpuContext{&pool, isa}, params).ok());
          ExpectTree(call, w, bias, residual, std::string(NameOf(isa)));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(GemmFormatTest, LongRowsHaveTheBitsOfTheTree) {
  const DType dtype = GetParam();
  ThreadPool pool(2);
  for (const int64_t columns : {1536, 4096 + 32}) {
    const int64_t k = RoundUp(columns, InfoOf(dtype).block_elements);
    const TestMatrix m = RandomMatrix(dtype, 33, k, 5);
    const std::vector<float> w = Decoded(m.stored);
    const auto packed = Pack(CpuContext{&pool, DetectIsa()}, {m.stored});
    for (const Isa isa : AvailableIsas()) {
      Call call(4, 33, k, 6);
      ASSERT_TRUE(Gemm(CpuContext{&pool, isa}, call.Params(*packed)).ok());
      ExpectTree(call, w, false, false, std::string(NameOf(isa)));
      if (HasFatalFailure()) return;
    }
  }
}

// Every batch size against each row computed alone: no reference needed, so it can be wide.
TEST_P(GemmFormatTest, ARowAloneEqualsThatRowInAnyBatch) {
  const DType dtype = GetParam();
  const int64_t k = RoundUp(160, InfoOf(dtype).block_elements), n = 72;
  constexpr int64_t kRows = 256;
  ThreadPool pool(2);
  const TestMatrix m = RandomMatrix(dtype, n, k, 7);
  const auto packed = Pack(CpuContext{&pool, DetectIsa()}, {m.stored});
  for (const Isa isa : AvailableIsas()) {
    const CpuContext context{&pool, isa};
    Call all(kRows, n, k, 8);
    std::vector<float> alone(static_cast<size_t>(kRows * n));
    for (int64_t t = 0; t < kRows; ++t) {
      GemmParams params = all.Params(*packed);
      params.tokens = 1;
      params.x += t * all.x_stride;
      params.y = &alone[t * n];
      params.y_stride = n;
      ASSERT_TRUE(Gemm(context, params).ok());
    }
    std::vector<int64_t> sizes = {97, 200, kRows};
    for (int64_t tokens = 1; tokens <= 70; ++tokens) sizes.push_back(tokens);
    for (const int64_t tokens : sizes) {
      const int64_t first = tokens % 7;
      GemmParams params = all.Params(*packed);
      params.tokens = std::min(tokens, kRows - first);
      params.x += first * all.x_stride;
      ASSERT_TRUE(Gemm(context, params).ok());
      for (int64_t t = 0; t < params.tokens; ++t) {
        ASSERT_EQ(std::memcmp(&all.y[t * all.y_stride], &alone[(first + t) * n],
                              static_cast<size_t>(n) * sizeof(float)),
                  0)
            << NameOf(isa) << ": row " << t << " of " << tokens;
      }
    }
  }
}

// |tree - exact| <= gamma * sum |x w|, gamma = (128 + levels) u / (1 - ...), u = 2^-24; the exact
// value is a double sum, whose own error is smaller by 2^-29 and covered by doubling gamma.
TEST_P(GemmFormatTest, IsCloseToTheDoubleProduct) {
  const DType dtype = GetParam();
  const int64_t k = RoundUp(1536, InfoOf(dtype).block_elements), n = 40, tokens = 16;
  ThreadPool pool(2);
  const TestMatrix m = RandomMatrix(dtype, n, k, 9);
  const std::vector<float> w = Decoded(m.stored);
  const auto packed = Pack(CpuContext{&pool, DetectIsa()}, {m.stored});
  Call call(tokens, n, k, 10);
  ASSERT_TRUE(Gemm(CpuContext{&pool, DetectIsa()}, call.Params(*packed)).ok());
  const double gamma = 2 * (128 + 12) * std::ldexp(1.0, -24);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < n; ++c) {
      double exact = 0, magnitude = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double product = static_cast<double>(call.x[t * call.x_stride + i]) * w[c * k + i];
        exact += product;
        magnitude += std::fabs(product);
      }
      ASSERT_NEAR(call.y[t * call.y_stride + c], exact, gamma * magnitude)
          << "row " << t << ", column " << c;
    }
  }
}

TEST_P(GemmFormatTest, NonFiniteRowsStayAlone) {
  const DType dtype = GetParam();
  const int64_t k = RoundUp(96, InfoOf(dtype).block_elements), n = 37;
  ThreadPool pool(1);
  const TestMatrix m = RandomMatrix(dtype, n, k, 11);
  const auto packed = Pack(CpuContext{&pool, DetectIsa()}, {m.stored});
  for (const Isa isa : AvailableIsas()) {
    for (const int64_t tokens : {2, 6, 13, 40}) {
      Call clean(tokens, n, k, 12), dirty(tokens, n, k, 12);
      const int64_t bad = tokens / 2;
      for (int64_t i = 0; i < k; ++i) {
        dirty.x[bad * dirty.x_stride + i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                                                       : std::numeric_limits<float>::infinity();
      }
      ASSERT_TRUE(Gemm(CpuContext{&pool, isa}, clean.Params(*packed)).ok());
      ASSERT_TRUE(Gemm(CpuContext{&pool, isa}, dirty.Params(*packed)).ok());
      for (int64_t t = 0; t < tokens; ++t) {
        if (t == bad) {
          ASSERT_TRUE(std::isnan(dirty.y[t * dirty.y_stride]));
          continue;
        }
        ASSERT_EQ(std::memcmp(&clean.y[t * clean.y_stride], &dirty.y[t * dirty.y_stride],
                              static_cast<size_t>(clean.y_stride) * sizeof(float)),
                  0)
            << NameOf(isa) << ": row " << t << " of " << tokens;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GemmFormatTest, ::testing::ValuesIn(kAllDTypes),
                         [](const auto& info) { return std::string(InfoOf(info.param).name); });

TEST(GemmTest, ThreadCountDoesNotMoveBitsAndPartsConcatenate) {
  const int64_t k = 256;
  const TestMatrix a = RandomMatrix(DType::kQ4_1, 70, k, 20);
  const TestMatrix b = RandomMatrix(DType::kQ6_K, 33, k, 21);
  const TestMatrix c = RandomMatrix(DType::kF16, 64, k, 22);
  std::vector<float> w = Decoded(a.stored);
  for (const TestMatrix* m : {&b, &c}) {
    const std::vector<float> more = Decoded(m->stored);
    w.insert(w.end(), more.begin(), more.end());
  }
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const Isa isa : AvailableIsas()) {
      const CpuContext context{&pool, isa};
      const auto packed = Pack(context, {a.stored, b.stored, c.stored});
      ASSERT_EQ(packed->rows(), 167);
      for (const int64_t tokens : {1, 3, 12, 30}) {
        Call call(tokens, 167, k, 23);
        GemmParams params = call.Params(*packed);
        params.bias = call.bias.data();
        ASSERT_TRUE(Gemm(context, params).ok());
        ExpectTree(call, w, true, false, std::string(NameOf(isa)));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(GemmTest, ResidualMayBeTheOutput) {
  ThreadPool pool(2);
  const CpuContext context{&pool, DetectIsa()};
  const TestMatrix m = RandomMatrix(DType::kQ8_0, 50, 288, 30);
  const auto packed = Pack(context, {m.stored});
  for (const int64_t tokens : {1, 7, 26}) {
    Call call(tokens, 50, 288, 31);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < 50; ++c) {
        call.y[t * call.y_stride + c] = call.residual[t * call.y_stride + c];
      }
    }
    GemmParams params = call.Params(*packed);
    params.residual = params.y;
    ASSERT_TRUE(Gemm(context, params).ok());
    ExpectTree(call, Decoded(m.stored), false, true, "in place");
  }
}

TEST(GemmTest, RefusesWhatContradictsTheWeight) {
  ThreadPool pool(1);
  const CpuContext context{&pool, DetectIsa()};
  const TestMatrix m = RandomMatrix(DType::kF32, 8, 16, 40);
  const auto packed = Pack(context, {m.stored});
  Call call(2, 8, 16, 41);
  const auto message = [&](auto change) {
    GemmParams params = call.Params(*packed);
    change(params);
    return std::string(Gemm(context, params).message());
  };
  EXPECT_EQ(message([](GemmParams&) {}), "");
  EXPECT_EQ(message([](GemmParams& p) {
              p.tokens = 0;
              p.x = nullptr;
            }),
            "");
  EXPECT_NE(message([](GemmParams& p) { p.weight = nullptr; }), "");
  EXPECT_NE(message([](GemmParams& p) { p.tokens = -1; }), "");
  EXPECT_NE(message([](GemmParams& p) { p.x = nullptr; }), "");
  EXPECT_NE(message([](GemmParams& p) { p.x_stride = 15; }), "");
  EXPECT_NE(message([](GemmParams& p) { p.y_stride = 7; }), "");
  auto lookup = PackMatrix(context, {m.stored}, {.for_gemm = false, .for_embedding = true}, {});
  ASSERT_TRUE(lookup.ok());
  EXPECT_NE(message([&](GemmParams& p) { p.weight = lookup->get(); }), "");
}

TEST(PackMatrixTest, NamesThePartThatCannotBe) {
  ThreadPool pool(1);
  const CpuContext context{&pool, DetectIsa()};
  const TestMatrix good = RandomMatrix(DType::kQ4_K, 4, 256, 50);
  const auto message = [&](StoredMatrix second) {
    const StoredMatrix parts[] = {good.stored, second};
    return std::string(PackMatrix(context, parts, {}, {}).status().message());
  };
  StoredMatrix bad = good.stored;
  EXPECT_EQ(message(bad), "");
  bad.rows = 0;
  EXPECT_NE(message(bad).find("part 1"), std::string::npos);
  bad = good.stored;
  bad.cols = 512;
  EXPECT_NE(message(bad).find("part 1"), std::string::npos);
  bad = good.stored;
  bad.data = nullptr;
  EXPECT_NE(message(bad).find("part 1"), std::string::npos);
  bad.cols = 128;
  EXPECT_FALSE(PackMatrix(context, {bad}, {}, {}).ok());
  EXPECT_FALSE(PackMatrix(context, {}, {}, {}).ok());
}

TEST(PackMatrixTest, EmbeddingRowsAreTheStoredValues) {
  ThreadPool pool(1);
  const CpuContext context{&pool, DetectIsa()};
  const TestMatrix a = RandomMatrix(DType::kQ8_0, 5, 64, 60),
                   b = RandomMatrix(DType::kBF16, 3, 64, 61);
  const auto packed = Pack(context, {a.stored, b.stored});
  const std::vector<float> wa = Decoded(a.stored), wb = Decoded(b.stored);
  for (int64_t row = 0; row < 8; ++row) {
    std::vector<float> out(64);
    DecodeEmbeddingRow(*packed, row, out.data());
    const float* want = row < 5 ? &wa[row * 64] : &wb[(row - 5) * 64];
    EXPECT_EQ(std::memcmp(out.data(), want, 64 * sizeof(float)), 0) << "row " << row;
  }
}

}  // namespace
}  // namespace verbatim::kernels::cpu

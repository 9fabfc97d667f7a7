// PORTABLE matrix products: the device's bits are the CPU's, whatever the format, shape and batch.
#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/backend_pair_test.h"

namespace verbatim::kernels::cuda {
namespace {

class GemmPortableTest : public BackendPairTest {
 protected:
  struct Case {
    std::vector<StoredMatrix> parts;
    int64_t tokens = 1;
    bool bias = false, residual = false;
  };

  static std::vector<float> Run(Backend& backend, const Case& c) {
    auto weight = backend.LoadMatrix(c.parts, {});
    EXPECT_TRUE(weight.ok()) << weight.status();
    const int64_t rows = (*weight)->rows(), cols = (*weight)->cols();
    const int64_t x_stride = cols + 3, y_stride = rows + 2;
    Arrays arrays(backend);
    float* x = arrays.Put(RandomFloats(c.tokens * x_stride, 21));
    float* y = arrays.Put(RandomFloats(c.tokens * y_stride, 22));
    float* bias = arrays.Put(RandomFloats(rows, 23));
    const absl::Status status = backend.Gemm({.weight = weight->get(),
                                              .tokens = c.tokens,
                                              .x = x,
                                              .x_stride = x_stride,
                                              .y = y,
                                              .y_stride = y_stride,
                                              .bias = c.bias ? bias : nullptr,
                                              .residual = c.residual ? y : nullptr});
    EXPECT_TRUE(status.ok()) << status;
    return arrays.Get(y, c.tokens * y_stride);
  }
};

TEST_F(GemmPortableTest, EveryFormatForFewAndManyTokens) {
  for (DType format : cpu::kAllDTypes) {
    const int64_t cols = InfoOf(format).block_elements == 256 ? 768 : 576;
    const cpu::TestMatrix w = cpu::RandomMatrix(format, 70, cols, 31);
    for (int64_t tokens : {1, 3, 18}) {
      SCOPED_TRACE(absl::StrCat(std::string(InfoOf(format).name), ", ", tokens, " tokens"));
      ExpectSameBits(
          [&](Backend& backend) { return Run(backend, {.parts = {w.stored}, .tokens = tokens}); });
    }
  }
}

TEST_F(GemmPortableTest, EveryBatchSizeHasTheSameBits) {
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, 40, 416, 32);
  for (int64_t tokens : {1, 2, 4, 5, 8, 9, 16, 17, 64, 70}) {
    SCOPED_TRACE(tokens);
    ExpectSameBits([&](Backend& backend) {
      return Run(backend, {.parts = {w.stored}, .tokens = tokens, .bias = true, .residual = true});
    });
  }
}

// Enough tiles that a GPU of any size takes the way for many tokens.
TEST_F(GemmPortableTest, ManyTiles) {
  if (test_device::Emulated()) GTEST_SKIP() << "its few multiprocessors need no such shape";
  for (DType format : {DType::kBF16, DType::kQ4_1}) {
    const cpu::TestMatrix w = cpu::RandomMatrix(format, 4300, 416, 39);
    ExpectSameBits([&](Backend& backend) {
      return Run(backend, {.parts = {w.stored}, .tokens = 70, .bias = true, .residual = true});
    });
  }
}

TEST_F(GemmPortableTest, ReductionsOfEveryLength) {
  for (int64_t cols : {1, 31, 33, 127, 128, 130, 255, 257, 640, 1153, 2100}) {
    // F32 is reordered, rows of BF16 stay rows with a padding.
    for (DType format : {DType::kF32, DType::kBF16}) {
      const cpu::TestMatrix w = cpu::RandomMatrix(format, 33, cols, 33);
      for (int64_t tokens : {1, 17}) {
        SCOPED_TRACE(
            absl::StrCat(std::string(InfoOf(format).name), ", ", cols, " columns, ", tokens));
        ExpectSameBits([&](Backend& backend) {
          return Run(backend, {.parts = {w.stored}, .tokens = tokens});
        });
      }
    }
  }
}

TEST_F(GemmPortableTest, FusedPartsOfDifferentFormats) {
  const cpu::TestMatrix q = cpu::RandomMatrix(DType::kQ4_1, 48, 256, 34);
  const cpu::TestMatrix k = cpu::RandomMatrix(DType::kQ4_1, 17, 256, 35);
  const cpu::TestMatrix v = cpu::RandomMatrix(DType::kQ6_K, 16, 256, 36);
  for (int64_t tokens : {2, 20}) {
    ExpectSameBits([&](Backend& backend) {
      return Run(backend, {.parts = {q.stored, k.stored, v.stored},
                           .tokens = tokens,
                           .bias = true,
                           .residual = true});
    });
  }
}

// Sums that underflow to −0 must not meet the +0 of padding.
TEST_F(GemmPortableTest, NegativeZeroSurvivesPadding) {
  const std::vector<float> weights(33 * 5, -1e-30f);
  const StoredMatrix stored{DType::kF32, 33, 5, reinterpret_cast<const std::byte*>(weights.data())};
  for (int64_t tokens : {1, 20}) {
    ExpectSameBits([&](Backend& backend) {
      auto weight = backend.LoadMatrix({&stored, 1}, {});
      EXPECT_TRUE(weight.ok());
      Arrays arrays(backend);
      float* y = arrays.Poisoned(tokens * 33);
      EXPECT_TRUE(backend
                      .Gemm({.weight = weight->get(),
                             .tokens = tokens,
                             .x = arrays.Put(std::vector<float>(tokens * 5, 1e-30f)),
                             .x_stride = 5,
                             .y = y,
                             .y_stride = 33})
                      .ok());
      std::vector<float> result = arrays.Get(y, tokens * 33);
      EXPECT_EQ(BitsOf(result[0]), 0x80000000u);
      return result;
    });
  }
}

// A neighbour's NaN and infinity stay in its own row.
TEST_F(GemmPortableTest, RowsDoNotMeet) {
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kQ8_0, 64, 256, 37);
  for (int64_t tokens : {3, 20}) {
    std::vector<float> x = RandomFloats(tokens * 256, 38);
    x[256 + 100] = std::nanf("");
    x[512 + 9] = INFINITY;
    ExpectSameBits([&](Backend& backend) {
      auto weight = backend.LoadMatrix({&w.stored, 1}, {});
      EXPECT_TRUE(weight.ok());
      Arrays arrays(backend);
      float* y = arrays.Poisoned(tokens * 64);
      EXPECT_TRUE(backend
                      .Gemm({.weight = weight->get(),
                             .tokens = tokens,
                             .x = arrays.Put(x),
                             .x_stride = 256,
                             .y = y,
                             .y_stride = 64})
                      .ok());
      return arrays.Get(y, tokens * 64);
    });
  }
}

}  // namespace
}  // namespace verbatim::kernels::cuda

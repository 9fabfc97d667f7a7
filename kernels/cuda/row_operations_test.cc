// Operations on rows: the device's bits are the CPU's.
#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/backend_pair_test.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;

class RowOperationsTest : public BackendPairTest {};

TEST_F(RowOperationsTest, RmsNormOfEveryLength) {
  for (int64_t cols : {1, 31, 32, 64, 127, 128, 129, 300, 576, 1000, 2176}) {
    for (int64_t groups : {1, 3}) {
      SCOPED_TRACE(absl::StrCat(cols, " columns, ", groups, " groups"));
      const int64_t rows = 3, stride = groups * cols + 5;
      const std::vector<float> x = RandomFloats(rows * stride, 1);
      const std::vector<float> weight = RandomFloats(cols, 2);
      ExpectSameBits([&](Backend& backend) {
        Arrays arrays(backend);
        float* y = arrays.Poisoned(rows * stride);
        const absl::Status status = backend.RmsNorm({.x = arrays.Put(x),
                                                     .x_stride = stride,
                                                     .y = y,
                                                     .y_stride = stride,
                                                     .weight = arrays.Put(weight),
                                                     .rows = rows,
                                                     .groups = groups,
                                                     .cols = cols,
                                                     .eps = 1e-5f});
        EXPECT_TRUE(status.ok()) << status;
        return arrays.Get(y, rows * stride);
      });
    }
  }
}

TEST_F(RowOperationsTest, RmsNormInPlaceAndRounded) {
  const std::vector<float> x = RandomFloats(2 * 4 * 64, 3);
  ExpectSameBits([&](Backend& backend) {
    Arrays arrays(backend);
    float* y = arrays.Put(x);
    EXPECT_TRUE(backend
                    .RmsNorm({.mode = {Policy::kThroughput, ActivationType::kBF16},
                              .x = y,
                              .x_stride = 256,
                              .y = y,
                              .y_stride = 256,
                              .weight = arrays.Put(RandomFloats(64, 4)),
                              .rows = 2,
                              .groups = 4,
                              .cols = 64,
                              .eps = 1e-6f})
                    .ok());
    return arrays.Get(y, x.size());
  });
}

TEST_F(RowOperationsTest, SpecialValuesPassThroughRmsNorm) {
  std::vector<float> x = RandomFloats(4 * 200, 5);
  x[7] = std::nanf("");
  x[210] = INFINITY;
  for (int i = 400; i < 600; ++i) x[i] = -0.0f;
  for (int i = 600; i < 800; ++i) x[i] *= 1e-30f;
  ExpectSameBits([&](Backend& backend) {
    Arrays arrays(backend);
    float* y = arrays.Poisoned(x.size());
    EXPECT_TRUE(backend
                    .RmsNorm({.x = arrays.Put(x),
                              .x_stride = 200,
                              .y = y,
                              .y_stride = 200,
                              .weight = arrays.Put(RandomFloats(200, 6)),
                              .rows = 4,
                              .cols = 200,
                              .eps = 0.0f})
                    .ok());
    return arrays.Get(y, x.size());
  });
}

TEST_F(RowOperationsTest, RopeOfBothPairings) {
  for (bool interleaved : {false, true}) {
    for (int64_t head_dim : {2, 10, 64, 128}) {
      SCOPED_TRACE(absl::StrCat(head_dim, interleaved ? " interleaved" : " halves"));
      const int64_t tokens = 5, heads = 3, kv_heads = 1, stride = (heads + 2 * kv_heads) * head_dim;
      const std::vector<float> qkv = RandomFloats(tokens * stride, 7);
      const std::vector<float> cosines = RandomFloats(40 * head_dim / 2, 8);
      const std::vector<float> sines = RandomFloats(40 * head_dim / 2, 9);
      ExpectSameBits([&](Backend& backend) {
        Arrays arrays(backend);
        float* y = arrays.Put(qkv);
        const absl::Status status =
            backend.Rope({.qkv = y,
                          .row_stride = stride,
                          .tokens = tokens,
                          .num_heads = heads,
                          .num_kv_heads = kv_heads,
                          .head_dim = head_dim,
                          .interleaved = interleaved,
                          .positions = arrays.Put(std::vector<int32_t>{0, 39, 7, 7, 20}),
                          .cos_table = arrays.Put(cosines),
                          .sin_table = arrays.Put(sines)});
        EXPECT_TRUE(status.ok()) << status;
        return arrays.Get(y, qkv.size());
      });
    }
  }
}

TEST_F(RowOperationsTest, SwiGluOfEveryMagnitude) {
  for (int64_t cols : {1, 33, 300}) {
    std::vector<float> gate_up = RandomFloats(3 * 2 * cols, 10, 20.0f);
    gate_up[0] = -100.0f;
    ExpectSameBits([&](Backend& backend) {
      Arrays arrays(backend);
      float* y = arrays.Poisoned(3 * cols);
      EXPECT_TRUE(
          backend.SwiGlu({.gate_up = arrays.Put(gate_up), .y = y, .tokens = 3, .cols = cols}).ok());
      return arrays.Get(y, 3 * cols);
    });
  }
}

TEST_F(RowOperationsTest, GatherRows) {
  const std::vector<float> x = RandomFloats(7 * 130, 11);
  ExpectSameBits([&](Backend& backend) {
    Arrays arrays(backend);
    float* y = arrays.Poisoned(4 * 130);
    EXPECT_TRUE(backend
                    .GatherRows({.x = arrays.Put(x),
                                 .rows = 7,
                                 .cols = 130,
                                 .index = arrays.Put(std::vector<int32_t>{6, 0, 3, 3}),
                                 .num_rows = 4,
                                 .y = y})
                    .ok());
    return arrays.Get(y, 4 * 130);
  });
}

TEST_F(RowOperationsTest, TreeSum) {
  for (int count : {1, 2, 3, 4, 5, 8, 64}) {
    SCOPED_TRACE(count);
    for (bool round : {false, true}) {
      ExpectSameBits([&](Backend& backend) {
        Arrays arrays(backend);
        std::vector<const float*> parts;
        for (int p = 0; p < count; ++p) parts.push_back(arrays.Put(RandomFloats(700, 20 + p)));
        float* y = arrays.Put(RandomFloats(700, 5));
        NumericMode mode;
        if (round) mode = {Policy::kThroughput, ActivationType::kBF16};
        const absl::Status status = backend.TreeSum({.mode = mode,
                                                     .parts = parts,
                                                     .count = 700,
                                                     .residual = count == 2 ? nullptr : y,
                                                     .y = y,
                                                     .round_output = round});
        EXPECT_TRUE(status.ok()) << status;
        return arrays.Get(y, 700);
      });
    }
  }
}

TEST_F(RowOperationsTest, EmbeddingOfEveryFormat) {
  for (DType format : cpu::kAllDTypes) {
    SCOPED_TRACE(std::string(InfoOf(format).name));
    const int64_t cols = InfoOf(format).block_elements == 1 ? 333 : 512;
    // Two parts, so that tokens lie in both.
    const cpu::TestMatrix first = cpu::RandomMatrix(format, 45, cols, 12);
    const cpu::TestMatrix second = cpu::RandomMatrix(DType::kF32, 20, cols, 13);
    const StoredMatrix parts[] = {first.stored, second.stored};
    for (bool round : {false, true}) {
      ExpectSameBits([&](Backend& backend) {
        auto table = backend.LoadMatrix(parts, {.for_gemm = false, .for_embedding = true});
        EXPECT_TRUE(table.ok()) << table.status();
        Arrays arrays(backend);
        float* y = arrays.Poisoned(6 * cols);
        NumericMode mode;
        if (round) mode = {Policy::kThroughput, ActivationType::kBF16};
        const absl::Status status =
            backend.Embedding({.mode = mode,
                               .table = table->get(),
                               .tokens = arrays.Put(std::vector<int32_t>{0, 44, 31, 32, 45, 64}),
                               .num_tokens = 6,
                               .y = y});
        EXPECT_TRUE(status.ok()) << status;
        return arrays.Get(y, 6 * cols);
      });
    }
  }
}

TEST_F(RowOperationsTest, EmbeddingIsScaledBeforeItIsRounded) {
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kQ4_1, 10, 96, 14);
  for (bool round : {false, true}) {
    for (float scale : {1.0f, 12.0f, 0.3f}) {
      ExpectSameBits([&](Backend& backend) {
        auto table = backend.LoadMatrix({&w.stored, 1}, {.for_gemm = false, .for_embedding = true});
        EXPECT_TRUE(table.ok()) << table.status();
        Arrays arrays(backend);
        float* y = arrays.Poisoned(2 * 96);
        NumericMode mode;
        if (round) mode = {Policy::kThroughput, ActivationType::kBF16};
        const absl::Status status =
            backend.Embedding({.mode = mode,
                               .table = table->get(),
                               .tokens = arrays.Put(std::vector<int32_t>{9, 2}),
                               .num_tokens = 2,
                               .scale = scale,
                               .y = y});
        EXPECT_TRUE(status.ok()) << status;
        return arrays.Get(y, 2 * 96);
      });
    }
  }
}

TEST_F(RowOperationsTest, ValuesThatOnlyKernelsSeeAreReportedOnce) {
  Arrays arrays(*cuda_);
  const cpu::TestMatrix table = cpu::RandomMatrix(DType::kF32, 10, 64, 1);
  auto matrix = cuda_->LoadMatrix({&table.stored, 1}, {.for_gemm = false, .for_embedding = true});
  ASSERT_TRUE(matrix.ok());
  float* y = arrays.Poisoned(2 * 64);
  ASSERT_TRUE(cuda_
                  ->Embedding({.table = matrix->get(),
                               .tokens = arrays.Put(std::vector<int32_t>{3, 10}),
                               .num_tokens = 2,
                               .y = y})
                  .ok());
  const absl::Status status = cuda_->Synchronize();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("Embedding: a token is out of range"));
  EXPECT_TRUE(cuda_->Synchronize().ok());
  // The row that was fine is there, the other is NaN.
  const std::vector<float> rows = arrays.Get(y, 2 * 64);
  EXPECT_FALSE(std::isnan(rows[0]));
  EXPECT_TRUE(std::isnan(rows[64]));

  ASSERT_TRUE(cuda_
                  ->GatherRows({.x = y,
                                .rows = 2,
                                .cols = 64,
                                .index = arrays.Put(std::vector<int32_t>{-1}),
                                .num_rows = 1,
                                .y = arrays.Poisoned(64)})
                  .ok());
  EXPECT_THAT(std::string(cuda_->Synchronize().message()), HasSubstr("GatherRows"));
}

TEST_F(RowOperationsTest, ShapesThatContradictEachOtherAreRefused) {
  float x = 0;
  const auto code = [](const absl::Status& status) { return status.code(); };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code(cuda_->RmsNorm({.x = &x, .y = &x, .weight = &x, .rows = 2, .cols = 4})), kInvalid);
  EXPECT_EQ(code(cuda_->RmsNorm({.rows = 1, .cols = 0})), kInvalid);
  EXPECT_EQ(code(cuda_->Rope({.tokens = 1, .num_heads = 1, .head_dim = 3})), kInvalid);
  EXPECT_EQ(code(cuda_->SwiGlu({.tokens = 1, .cols = 4})), kInvalid);
  EXPECT_EQ(code(cuda_->GatherRows({.rows = 1, .cols = 1, .num_rows = 1})), kInvalid);
  EXPECT_EQ(code(cuda_->Embedding({.num_tokens = 1})), kInvalid);
  EXPECT_EQ(code(cuda_->Gemm({.tokens = 1})), kInvalid);
  EXPECT_EQ(code(cuda_->LoadMatrix({}, {}).status()), kInvalid);
}

}  // namespace
}  // namespace verbatim::kernels::cuda

// PINNED matrix products: against double precision, against their own arithmetic spelt out, and
// against themselves in every batch.
#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/backend_pair_test.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/tree_nodes.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr NumericMode kPinnedMode{Policy::kPinned};

class GemmPinnedTest : public BackendPairTest {
 protected:
  std::vector<float> Run(const StoredMatrix& w, const std::vector<float>& x, int64_t tokens,
                         const std::vector<float>& bias = {}, bool residual = false) {
    auto weight = cuda_->LoadMatrix({&w, 1}, {});
    EXPECT_TRUE(weight.ok()) << weight.status();
    Arrays arrays(*cuda_);
    float* y = arrays.Put(RandomFloats(tokens * w.rows, 81));
    const absl::Status status = cuda_->Gemm({.mode = kPinnedMode,
                                             .weight = weight->get(),
                                             .tokens = tokens,
                                             .x = arrays.Put(x),
                                             .x_stride = static_cast<int64_t>(x.size()) / tokens,
                                             .y = y,
                                             .y_stride = w.rows,
                                             .bias = bias.empty() ? nullptr : arrays.Put(bias),
                                             .residual = residual ? y : nullptr});
    EXPECT_TRUE(status.ok()) << status;
    return arrays.Get(y, tokens * w.rows);
  }
};

// The arithmetic spelt out: shards of fp32 sums of exact products in ascending k, then the top of
// the tree. The order within one instruction is the emulator's.
float Spelt(const float* x, const float* w, int64_t cols) {
  const int64_t chunks = numerics::ChunkCount(cols);
  std::vector<float> shards;
  for (int shard = 0; shard < ShardCount(chunks); ++shard) {
    const TreeNode node = ShardAt(shard, chunks);
    float sum = 0.0f;
    for (int64_t k = node.first * 128; k < std::min(cols, (node.first + node.count) * 128); ++k) {
      const float product = numerics::RoundToBf16(x[k]) * numerics::RoundToBf16(w[k]);
      sum = sum + product;
    }
    shards.push_back(sum);
  }
  return numerics::TreeSum(shards.data(), static_cast<int64_t>(shards.size()));
}

TEST_F(GemmPinnedTest, IsTheArithmeticOfTheContract) {
  if (!test_device::Emulated()) GTEST_SKIP() << "a GPU has its own order within an instruction";
  for (int64_t cols : {1, 8, 32, 33, 128, 200, 257, 384, 416, 640, 1153}) {
    if (test_device::Slow() && cols != 33 && cols != 640) continue;
    const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, 70, cols, 82);
    const std::vector<float> decoded = cpu::Decoded(w.stored);
    for (int64_t tokens : {1, 9, 20, 70}) {
      const std::vector<float> x = RandomFloats(tokens * cols, 83);
      std::vector<float> expected;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t n = 0; n < 70; ++n) {
          expected.push_back(Spelt(&x[t * cols], &decoded[n * cols], cols));
        }
      }
      for (int s = 0; s < test_device::Schedules(); ++s) {
        const std::string name = test_device::UseSchedule(s);
        EXPECT_TRUE(SameBits(expected, Run(w.stored, x, tokens)))
            << cols << " columns, " << tokens << " tokens, " << name;
      }
    }
  }
}

TEST_F(GemmPinnedTest, IsCloseToTheExactProduct) {
  for (DType format : cpu::kAllDTypes) {
    SCOPED_TRACE(std::string(InfoOf(format).name));
    const int64_t cols = 768, rows = 40;
    const cpu::TestMatrix w = cpu::RandomMatrix(format, rows, cols, 84);
    const std::vector<float> decoded = cpu::Decoded(w.stored);
    const std::vector<float> bias = RandomFloats(rows, 86);
    for (int64_t tokens : {3, 66}) {
      const std::vector<float> x = RandomFloats(tokens * cols, 85);
      const std::vector<float> before = RandomFloats(tokens * rows, 81);
      const std::vector<float> y = Run(w.stored, x, tokens, bias, true);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t n = 0; n < rows; ++n) {
          double exact = 0, magnitude = 0;
          for (int64_t k = 0; k < cols; ++k) {
            const double term = static_cast<double>(numerics::RoundToBf16(x[t * cols + k])) *
                                numerics::RoundToBf16(decoded[n * cols + k]);
            exact += term;
            magnitude += std::abs(term);
          }
          exact += static_cast<double>(bias[n]) + before[t * rows + n];
          magnitude += std::abs(bias[n]) + std::abs(before[t * rows + n]);
          // An fp32 sum in any order; the matrix unit may cut each addend to 24 bits.
          ASSERT_NEAR(y[t * rows + n], exact, magnitude * static_cast<double>(cols) * 0x1p-23)
              << t << ", " << n;
        }
      }
    }
  }
}

// Every batch size runs another kernel or another tile; a row's bits must not tell.
TEST_F(GemmPinnedTest, ARowHasTheSameBitsInEveryBatch) {
  for (int64_t cols : {96, 416, 1280}) {
    if (test_device::Slow() && cols > 96) continue;
    const cpu::TestMatrix w = cpu::RandomMatrix(DType::kQ4_1, 300, cols, 87);
    const int64_t most = 150;
    const std::vector<float> x = RandomFloats(most * cols, 88);
    const std::vector<float> first = Run(w.stored, {x.begin(), x.begin() + cols}, 1);
    for (int64_t tokens : {2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 150}) {
      const std::vector<float> y = Run(w.stored, {x.begin(), x.begin() + tokens * cols}, tokens);
      EXPECT_TRUE(SameBits(first, {y.begin(), y.begin() + 300})) << tokens << " tokens";
      // The same row in the last place.
      std::vector<float> moved(x.begin(), x.begin() + tokens * cols);
      std::copy(x.begin(), x.begin() + cols, moved.end() - cols);
      const std::vector<float> z = Run(w.stored, moved, tokens);
      EXPECT_TRUE(SameBits(first, {z.end() - 300, z.end()})) << tokens << " tokens, last place";
    }
  }
}

// Parts of every kind are one product over one copy; those stored as BF16 lie in it for PORTABLE
// too.
TEST_F(GemmPinnedTest, PartsAreOneProduct) {
  const int64_t cols = 288;
  std::vector<cpu::TestMatrix> parts;
  parts.push_back(cpu::RandomMatrix(DType::kQ8_0, 33, cols, 96));
  parts.push_back(cpu::RandomMatrix(DType::kBF16, 17, cols, 97));
  parts.push_back(cpu::RandomMatrix(DType::kBF16, 5, cols, 98));
  parts.push_back(cpu::RandomMatrix(DType::kF32, 40, cols, 99));
  std::vector<StoredMatrix> stored;
  std::vector<float> decoded;
  for (const cpu::TestMatrix& part : parts) {
    stored.push_back(part.stored);
    const std::vector<float> values = cpu::Decoded(part.stored);
    decoded.insert(decoded.end(), values.begin(), values.end());
  }
  const int64_t rows = 33 + 17 + 5 + 40;
  for (int64_t tokens : {2, 30, 40}) {
    const std::vector<float> x = RandomFloats(tokens * cols, 100);
    const auto run = [&](Backend& backend, Policy policy) {
      auto weight = backend.LoadMatrix(stored, {});
      EXPECT_TRUE(weight.ok()) << weight.status();
      Arrays arrays(backend);
      float* y = arrays.Poisoned(tokens * rows);
      EXPECT_TRUE(backend
                      .Gemm({.mode = {policy},
                             .weight = weight->get(),
                             .tokens = tokens,
                             .x = arrays.Put(x),
                             .x_stride = cols,
                             .y = y,
                             .y_stride = rows})
                      .ok());
      return arrays.Get(y, tokens * rows);
    };
    ExpectSameBits([&](Backend& backend) { return run(backend, Policy::kPortable); });
    if (!test_device::Emulated()) continue;
    std::vector<float> expected;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t n = 0; n < rows; ++n) {
        expected.push_back(Spelt(&x[t * cols], &decoded[n * cols], cols));
      }
    }
    EXPECT_TRUE(SameBits(expected, run(*cuda_, Policy::kPinned))) << tokens << " tokens";
  }
}

// A rank of two or four has the columns of a node of the tree and cuts them at a lower depth: its
// sums are the whole product's.
TEST_F(GemmPinnedTest, ColumnsThatAreANodeHaveItsSums) {
  const int64_t cols = 1153, rows = 70, chunks = numerics::ChunkCount(cols);
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, rows, cols, 101);
  for (int64_t tokens : {5, 20, 40, 70}) {
    const std::vector<float> x = RandomFloats(tokens * cols, 102);
    const std::vector<float> whole = Run(w.stored, x, tokens);
    for (int depth : {1, 2}) {
      std::vector<std::vector<float>> sums;
      for (int rank = 0; rank < 1 << depth; ++rank) {
        const TreeNode node = NodeAt(rank, depth, chunks);
        const int64_t first = node.first * 128;
        const int64_t own = std::min(cols, first + node.count * 128) - first;
        std::vector<uint16_t> own_w(rows * RowPitch(own));
        for (int64_t n = 0; n < rows; ++n) {
          std::memcpy(&own_w[n * RowPitch(own)], w.stored.data + (n * cols + first) * 2, own * 2);
        }
        Arrays arrays(*cuda_);
        auto stream = runtime::CreateStream();
        ASSERT_TRUE(stream.ok());
        RoundRowsArgs rounding{.x = arrays.Put(x) + first,
                               .x_stride = cols,
                               .num_rows = tokens,
                               .cols = own,
                               .rounded = arrays.Poisoned(tokens * RowPitch(own) / 2)};
        rounding.places.x_rows = tokens;
        float* y = arrays.Poisoned(tokens * rows);
        const GemmPinnedArgs args{.part = {.format = DType::kBF16,
                                           .rows = rows,
                                           .cols = own,
                                           .quants = arrays.Put(own_w)},
                                  .tokens = tokens,
                                  .rounded_x = rounding.rounded,
                                  .y = y,
                                  .y_stride = rows,
                                  .shard_depth = numerics::kShardDepth - depth};
        ASSERT_TRUE(cuda_->Synchronize().ok());
        ASSERT_EQ(LaunchRoundRows(rounding, *stream), 0);
        ASSERT_EQ(LaunchGemmPinned(args, *stream), 0);
        ASSERT_TRUE(runtime::Synchronize(*stream).ok());
        sums.push_back(arrays.Get(y, tokens * rows));
        runtime::DestroyStream(*stream);
      }
      std::vector<float> joined(tokens * rows);
      for (size_t i = 0; i < joined.size(); ++i) {
        std::vector<float> ranks;
        for (const std::vector<float>& sum : sums) ranks.push_back(sum[i]);
        joined[i] = numerics::TreeSum(ranks.data(), static_cast<int64_t>(ranks.size()));
      }
      EXPECT_TRUE(SameBits(whole, joined)) << tokens << " tokens, depth " << depth;
    }
  }
}

TEST_F(GemmPinnedTest, NeighboursDoNotMeet) {
  const int64_t cols = 512;
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, 64, cols, 89);
  for (int64_t tokens : {3, 12, 40, 100}) {
    std::vector<float> x = RandomFloats(tokens * cols, 90);
    const std::vector<float> before = Run(w.stored, x, tokens);
    for (int64_t k = 0; k < cols; ++k) x[cols + k] = k % 2 == 0 ? std::nanf("") : INFINITY;
    const std::vector<float> after = Run(w.stored, x, tokens);
    EXPECT_TRUE(
        SameBits({before.begin(), before.begin() + 64}, {after.begin(), after.begin() + 64}));
    EXPECT_TRUE(SameBits({before.begin() + 128, before.end()}, {after.begin() + 128, after.end()}));
    EXPECT_TRUE(std::isnan(after[64]));
  }
}

TEST_F(GemmPinnedTest, RefusedWithoutMatrixUnits) {
  auto portable = CudaBackend::Create({.matrix_units = false,
                                       .weight_block_bytes = 0,
                                       .workspace_bytes = 4096,
                                       .table_bytes = 4096,
                                       .staging_slot_bytes = 4096,
                                       .sampling_scratch_bytes = 4096,
                                       .sampling_list_bytes = 4096});
  ASSERT_TRUE(portable.ok()) << portable.status();
  EXPECT_EQ((*portable)->NumericsTag(Policy::kPinned).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE((*portable)->NumericsTag(Policy::kPortable).ok());
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kF32, 4, 8, 91);
  auto weight = (*portable)->LoadMatrix({&w.stored, 1}, {});
  ASSERT_TRUE(weight.ok());
  float x[8] = {}, y[4];
  EXPECT_EQ((*portable)
                ->Gemm({.mode = kPinnedMode,
                        .weight = weight->get(),
                        .tokens = 1,
                        .x = x,
                        .x_stride = 8,
                        .y = y,
                        .y_stride = 4})
                .code(),
            absl::StatusCode::kFailedPrecondition);
}

// A router's logits: fp32 values, whatever the policy's matrix units hold.
TEST_F(GemmPinnedTest, ThroughputKeepsFp32InputsOfF32Weights) {
  for (DType format : {DType::kF32, DType::kBF16}) {
    const cpu::TestMatrix w = cpu::RandomMatrix(format, 20, 200, 94);
    const auto run = [&](NumericMode mode) {
      auto weight = cuda_->LoadMatrix({&w.stored, 1}, {});
      EXPECT_TRUE(weight.ok());
      Arrays arrays(*cuda_);
      float* y = arrays.Poisoned(3 * 20);
      EXPECT_TRUE(cuda_
                      ->Gemm({.mode = mode,
                              .weight = weight->get(),
                              .tokens = 3,
                              .x = arrays.Put(RandomFloats(3 * 200, 95)),
                              .x_stride = 200,
                              .y = y,
                              .y_stride = 20})
                      .ok());
      EXPECT_EQ(cuda_->GemmKernel(mode, **weight, 3) == "cuda tree",
                mode.policy == Policy::kPortable ||
                    (format == DType::kF32 && mode.policy == Policy::kThroughput &&
                     mode.activations == ActivationType::kF32));
      return arrays.Get(y, 3 * 20);
    };
    const std::vector<float> fp32 = run({Policy::kPortable}), pinned = run({Policy::kPinned});
    EXPECT_FALSE(SameBits(fp32, pinned));
    EXPECT_EQ(SameBits(fp32, run({Policy::kThroughput, ActivationType::kF32})),
              format == DType::kF32);
    EXPECT_FALSE(SameBits(fp32, run({Policy::kThroughput, ActivationType::kBF16})));
  }
}

TEST_F(GemmPinnedTest, TokensInSlicesOfASmallWorkspace) {
  const int64_t cols = 640, tokens = 300;
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, 40, cols, 92);
  const std::vector<float> x = RandomFloats(tokens * cols, 93);
  const std::vector<float> whole = Run(w.stored, x, tokens);
  auto small = CudaBackend::Create({.weight_block_bytes = 0,
                                    .workspace_bytes = 128 * 640 * 2,
                                    .table_bytes = 4096,
                                    .staging_slot_bytes = 4096,
                                    .sampling_scratch_bytes = 4096,
                                    .sampling_list_bytes = 4096});
  ASSERT_TRUE(small.ok());
  cuda_ = *std::move(small);
  EXPECT_TRUE(SameBits(whole, Run(w.stored, x, tokens)));
}

}  // namespace
}  // namespace verbatim::kernels::cuda

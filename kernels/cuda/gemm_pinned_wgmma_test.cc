// PINNED products by warpgroups against those by warps, bit for bit. On a GPU this is also where it
// shows whether wgmma sums as mma.sync does.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/wgmma_test.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {
namespace {

struct Case {
  int64_t rows, cols, tokens;
  int multiprocessors = 3;
  bool partials = false;
  bool residual = false;
  bool bias = false;
  bool round = false;
  int64_t y_padding = 0;
  int shard_depth = numerics::kShardDepth;

  std::string Name() const {
    return absl::StrCat(rows, " rows, ", cols, " columns, ", tokens, " tokens, ", multiprocessors,
                        " multiprocessors", partials ? ", partials" : "",
                        residual ? ", residual" : "", bias ? ", bias" : "", round ? ", round" : "",
                        ", depth ", shard_depth);
  }
};

class GemmPinnedWgmmaTest : public WgmmaTest {
 protected:
  // Every form and schedule gives the same y, padding included.
  void ExpectEqualForms(const Case& c) {
    SCOPED_TRACE(c.Name());
    Arrays arrays(*cuda_);
    const int64_t pitch = RowPitch(c.cols), stride = c.rows + c.y_padding;
    const std::vector<float> w = SpreadFloats(c.rows * c.cols, 1);
    std::vector<uint16_t> packed(c.rows * pitch);
    for (int64_t n = 0; n < c.rows; ++n) {
      for (int64_t k = 0; k < c.cols; ++k) {
        packed[n * pitch + k] = numerics::Bf16FromFloat(w[n * c.cols + k]);
      }
    }
    const std::vector<float> before = RandomFloats(c.tokens * stride, 3);
    float* y = arrays.Put(before);
    RoundRowsArgs rounding{.x = arrays.Put(SpreadFloats(c.tokens * c.cols, 2)),
                           .x_stride = c.cols,
                           .num_rows = c.tokens,
                           .cols = c.cols,
                           .rounded = arrays.Poisoned(c.tokens * pitch / 2)};
    rounding.places.x_rows = c.tokens;
    GemmPinnedArgs args{.part = {.format = DType::kBF16,
                                 .rows = c.rows,
                                 .cols = c.cols,
                                 .quants = arrays.Put(packed)},
                        .tokens = c.tokens,
                        .rounded_x = rounding.rounded,
                        .y = y,
                        .y_stride = stride,
                        .bias = c.bias ? arrays.Put(RandomFloats(c.rows, 4)) : nullptr,
                        .residual = c.residual ? y : nullptr,
                        .round = c.round,
                        .multiprocessors = c.multiprocessors,
                        .shard_depth = c.shard_depth};
    if (c.partials) {
      const size_t partials = kMaxPartials * c.tokens * c.rows;
      args.partials = arrays.Poisoned(partials);
      args.partial_bytes = partials * sizeof(float);
    }
    uint32_t* stuck = arrays.Put(std::vector<uint32_t>{0});
    ASSERT_TRUE(cuda_->Synchronize().ok());
    Run([&](Stream stream) { return LaunchRoundRows(rounding, stream); });
    ASSERT_TRUE(WgmmaCanCompute(args.part, c.tokens));
    test_device::UseSchedule(0);
    Run([&](Stream stream) { return LaunchGemmPinned(args, stream); });
    const std::vector<float> expected = arrays.Get(y, before.size());
    for (const WgmmaTiles& tiles : kWgmmaTiles) {
      for (int s = 0; s < test_device::Schedules(); ++s) {
        const std::string name = test_device::UseSchedule(s);
        ASSERT_TRUE(cuda_->CopyToDevice(y, before.data(), before.size() * sizeof(float)).ok());
        ASSERT_TRUE(cuda_->Synchronize().ok());
        Run([&](Stream stream) { return LaunchGemmPinnedWgmma(args, tiles, stuck, stream); });
        EXPECT_TRUE(SameBits(expected, arrays.Get(y, before.size())))
            << "tiles of " << tiles.columns << ", clusters of " << tiles.cluster << ", " << name;
      }
    }
    EXPECT_EQ(arrays.Get(stuck, 1)[0], 0u);
  }

  static constexpr size_t kMaxPartials = 4;
};

// Fewer and more shards than four, equal and not, a last chunk that is short.
TEST_F(GemmPinnedWgmmaTest, ShardsOfEveryKind) {
  for (int64_t cols : {64, 128, 192, 256, 384, 448, 512, 576, 640, 1536}) {
    if (test_device::Slow() && cols != 384 && cols != 576) continue;
    ExpectEqualForms({.rows = 40, .cols = cols, .tokens = 30});
  }
}

TEST_F(GemmPinnedWgmmaTest, ColumnsOfNoWholeStage) {
  for (int64_t cols : {33, 63, 100, 575, 1132}) {
    if (test_device::Slow() && cols != 575) continue;
    ExpectEqualForms({.rows = 40, .cols = cols, .tokens = 30});
  }
  PackedPart part{.format = DType::kBF16, .rows = 40, .cols = 96};
  EXPECT_FALSE(WgmmaCanCompute(part, 30)) << "whose instructions end within a stage";
  part.cols = 97;
  EXPECT_TRUE(WgmmaCanCompute(part, 30));
}

TEST_F(GemmPinnedWgmmaTest, TilesThatAreNotFull) {
  for (int64_t tokens : {1, 128, 129}) {
    for (int64_t rows : {1, 128, 193}) {
      if (test_device::Slow() && (tokens != 129 || rows != 193)) continue;
      ExpectEqualForms({.rows = rows, .cols = 192, .tokens = tokens});
    }
  }
}

// Blocks with many tiles, one, and none but their shard of one.
TEST_F(GemmPinnedWgmmaTest, HoweverManyMultiprocessors) {
  for (int multiprocessors : {1, 5, 100}) {
    if (test_device::Slow() && multiprocessors != 5) continue;
    for (bool partials : {false, true}) {
      ExpectEqualForms({.rows = 200,
                        .cols = 448,
                        .tokens = 130,
                        .multiprocessors = multiprocessors,
                        .partials = partials,
                        .bias = true});
    }
  }
  ExpectEqualForms({.rows = 33,
                    .cols = 192,
                    .tokens = 10,
                    .multiprocessors = 100,
                    .partials = true,
                    .residual = true});
}

TEST_F(GemmPinnedWgmmaTest, MoreTokenTilesThanTakeTurns) {
  if (test_device::Slow()) return;
  ExpectEqualForms({.rows = 200, .cols = 64, .tokens = 128 * 17 + 5, .multiprocessors = 7});
}

TEST_F(GemmPinnedWgmmaTest, WhatBecomesOfSums) {
  for (bool residual : {false, true}) {
    for (bool round : {false, true}) {
      for (int64_t padding : {0, 1, 6}) {
        if (test_device::Slow() && padding != 1) continue;
        ExpectEqualForms({.rows = 61 + (padding + 1) / 6,
                          .cols = 256,
                          .tokens = 20,
                          .residual = residual,
                          .bias = round,
                          .round = round,
                          .y_padding = padding});
      }
    }
  }
}

// Columns that are a node of a longer reduction.
TEST_F(GemmPinnedWgmmaTest, ShardsOfLessDepth) {
  for (int depth : {0, 1}) {
    ExpectEqualForms({.rows = 20, .cols = 640, .tokens = 20, .shard_depth = depth});
  }
}

TEST_F(GemmPinnedWgmmaTest, NotANumberStaysInItsRow) {
  Arrays arrays(*cuda_);
  const int64_t rows = 130, cols = 320, tokens = 70;
  std::vector<uint16_t> x(tokens * cols), w(rows * cols, numerics::Bf16FromFloat(1.5f));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < cols; ++k) {
      x[t * cols + k] = t == 65 ? uint16_t{0x7fc0} : numerics::Bf16FromFloat(0.25f);
    }
  }
  float* y = arrays.Poisoned(tokens * rows);
  const GemmPinnedArgs args{
      .part = {.format = DType::kBF16, .rows = rows, .cols = cols, .quants = arrays.Put(w)},
      .tokens = tokens,
      .rounded_x = arrays.Put(x),
      .y = y,
      .y_stride = rows,
      .multiprocessors = 4};
  uint32_t* stuck = arrays.Put(std::vector<uint32_t>{0});
  ASSERT_TRUE(cuda_->Synchronize().ok());
  Run([&](Stream stream) { return LaunchGemmPinnedWgmma(args, {128, 2}, stuck, stream); });
  const std::vector<float> result = arrays.Get(y, tokens * rows);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      const float value = result[t * rows + n];
      EXPECT_TRUE(t == 65 ? std::isnan(value) : value == 0.375f * 320) << t << ", " << n;
    }
  }
}

}  // namespace
}  // namespace verbatim::kernels::cuda

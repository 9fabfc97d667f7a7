// PINNED products of experts by warpgroups against those by warps, bit for bit.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/wgmma_test.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {
namespace {

struct Case {
  int64_t rows, cols;
  std::vector<int32_t> counts;  // places of each expert
  int64_t unused_places = 0;
  int64_t begin = 0, end = 0;  // places of the launch; end 0: all
  int multiprocessors = 3;
  bool round = false;
  int64_t y_padding = 0;
  int shard_depth = numerics::kShardDepth;

  int64_t places() const { return std::accumulate(counts.begin(), counts.end(), unused_places); }
  std::string Name() const {
    return absl::StrCat(rows, " rows, ", cols, " columns, places ", absl::StrJoin(counts, " "),
                        ", from ", begin, " to ", end, ", ", multiprocessors, " multiprocessors",
                        round ? ", round" : "", ", depth ", shard_depth);
  }
};

class GroupedGemmWgmmaTest : public WgmmaTest {
 protected:
  // The arguments for a case, whose arrays are in `arrays`; every expert's weights lie apart.
  static GroupedGemmArgs ArgsOf(const Case& c, Arrays& arrays) {
    const int64_t pitch = RowPitch(c.cols);
    std::vector<int32_t> offsets = {0};
    std::vector<PackedPart> parts;
    for (size_t e = 0; e < c.counts.size(); ++e) {
      offsets.push_back(offsets.back() + c.counts[e]);
      parts.push_back({.format = DType::kBF16,
                       .rows = c.rows,
                       .cols = c.cols,
                       .quants = arrays.Put(Rows(c.rows, c.cols, static_cast<uint32_t>(e + 10)))});
    }
    std::vector<char> maps(parts.size() * kWeightMapBytes);
    EXPECT_EQ(MakeWeightMaps(parts.data(), static_cast<int64_t>(parts.size()), maps.data()), 0);
    const int64_t end = c.end != 0 ? c.end : c.places();
    // Rows of places that nobody has are not numbers.
    std::vector<uint16_t> x = Rows(offsets.back(), c.cols, 2);
    x.resize(static_cast<size_t>(c.places() * pitch), 0x7fc0);
    x.erase(x.begin(), x.begin() + c.begin * pitch);
    x.resize(static_cast<size_t>((end - c.begin) * pitch));
    return {.places = {.offsets = arrays.Put(offsets),
                       .num_experts = static_cast<int64_t>(parts.size()),
                       .begin = c.begin,
                       .end = end,
                       .max_places = c.places(),
                       .rows = nullptr,
                       .x_rows = c.places(),
                       .fault = arrays.Put(std::vector<uint32_t>{0})},
            .format = DType::kBF16,
            .parts = arrays.Put(parts),
            .maps = arrays.Put(maps),
            .most_rows = c.rows,
            .cols = c.cols,
            .rounded_x = arrays.Put(x),
            .rounded_first = c.begin,
            .y_stride = c.rows + c.y_padding,
            .round = c.round,
            .shard_depth = c.shard_depth};
  }
  static std::vector<uint16_t> Rows(int64_t rows, int64_t cols, uint32_t seed) {
    const int64_t pitch = RowPitch(cols);
    const std::vector<float> values = SpreadFloats(static_cast<size_t>(rows * cols), seed);
    std::vector<uint16_t> packed(static_cast<size_t>(rows * pitch));
    for (int64_t i = 0; i < rows * cols; ++i) {
      packed[i / cols * pitch + i % cols] = numerics::Bf16FromFloat(values[i]);
    }
    return packed;
  }

  // Every form and schedule gives the same y, padding and places of nobody included.
  void ExpectEqualForms(const Case& c) {
    SCOPED_TRACE(c.Name());
    Arrays arrays(*cuda_);
    GroupedGemmArgs args = ArgsOf(c, arrays);
    const std::vector<float> before =
        RandomFloats(static_cast<size_t>(c.places() * args.y_stride), 3);
    args.y = arrays.Put(before);
    uint32_t* stuck = arrays.Put(std::vector<uint32_t>{0});
    ASSERT_TRUE(cuda_->Synchronize().ok());
    ASSERT_TRUE(WgmmaCanComputeExperts(args));
    test_device::UseSchedule(0);
    Run([&](Stream stream) { return LaunchGroupedGemmPinned(args, stream); });
    const std::vector<float> expected = arrays.Get(args.y, before.size());
    for (const WgmmaTiles& tiles : kWgmmaTiles) {
      for (int s = 0; s < test_device::Schedules(); ++s) {
        const std::string name = test_device::UseSchedule(s);
        ASSERT_TRUE(cuda_->CopyToDevice(args.y, before.data(), before.size() * sizeof(float)).ok());
        ASSERT_TRUE(cuda_->Synchronize().ok());
        Run([&](Stream stream) {
          return LaunchGroupedGemmWgmma(args, tiles, c.multiprocessors, stuck, stream);
        });
        EXPECT_TRUE(SameBits(expected, arrays.Get(args.y, before.size())))
            << "tiles of " << tiles.columns << ", clusters of " << tiles.cluster << ", " << name;
      }
    }
    EXPECT_EQ(arrays.Get(stuck, 1)[0], 0u);
    EXPECT_EQ(arrays.Get(args.places.fault, 1)[0], 0u);
  }
};

TEST_F(GroupedGemmWgmmaTest, CountsOfEveryKind) {
  ExpectEqualForms({.rows = 40, .cols = 192, .counts = {0, 1, 127, 128, 129, 0}});
  if (test_device::Slow()) return;
  ExpectEqualForms({.rows = 40, .cols = 64, .counts = {33, 0, 32, 0, 0, 260, 64}});
  ExpectEqualForms({.rows = 40, .cols = 64, .counts = {300}, .unused_places = 70});
}

// Fewer and more shards than four, equal and not, a last chunk or stage that is short.
TEST_F(GroupedGemmWgmmaTest, ShardsOfEveryKind) {
  for (int64_t cols : {33, 128, 384, 575, 1132}) {
    if (test_device::Slow() && cols != 575) continue;
    ExpectEqualForms({.rows = 40, .cols = cols, .counts = {40}});
  }
  for (int depth : {0, 1}) {
    if (test_device::Slow() && depth == 0) continue;
    ExpectEqualForms({.rows = 20, .cols = 640, .counts = {40}, .shard_depth = depth});
  }
}

// Outputs of no whole tile, of a tile whose neighbour in the cluster has none, and of several.
TEST_F(GroupedGemmWgmmaTest, OutputsThatDoNotFillClusters) {
  for (int64_t rows : {1, 128, 193, 400, 600}) {
    if (test_device::Slow() && rows != 193) continue;
    for (int multiprocessors : {1, 100}) {
      if (rows < 400 && multiprocessors == 1) continue;
      ExpectEqualForms(
          {.rows = rows, .cols = 64, .counts = {130, 35}, .multiprocessors = multiprocessors});
    }
  }
}

TEST_F(GroupedGemmWgmmaTest, MoreExpertsThanAWarpHasLanes) {
  if (test_device::Slow()) return;
  std::vector<int32_t> counts(70, 1);
  for (int e : {0, 31, 32, 63, 64, 69}) counts[static_cast<size_t>(e)] = 33 + e;
  ExpectEqualForms({.rows = 20, .cols = 64, .counts = counts});
}

TEST_F(GroupedGemmWgmmaTest, MorePlaceTilesThanTakeTurns) {
  if (test_device::Slow()) return;
  ExpectEqualForms({.rows = 200, .cols = 64, .counts = {128 * 17 + 5, 40}, .multiprocessors = 7});
}

// A slice begins and ends within an expert's places.
TEST_F(GroupedGemmWgmmaTest, SlicesOfPlaces) {
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 100}, {50, 330}, {200, 0}}) {
    if (test_device::Slow() && begin != 50) continue;
    ExpectEqualForms({.rows = 40,
                      .cols = 64,
                      .counts = {150, 10, 170, 40},
                      .unused_places = 9,
                      .begin = begin,
                      .end = end});
  }
}

TEST_F(GroupedGemmWgmmaTest, WhatBecomesOfSums) {
  for (bool round : {false, true}) {
    for (int64_t padding : {0, 1, 6}) {
      if (test_device::Slow() && padding != 1) continue;
      ExpectEqualForms({.rows = 61 + (padding + 1) / 6,
                        .cols = 64,
                        .counts = {40},
                        .round = round,
                        .y_padding = padding});
    }
  }
}

// Offsets that do not ascend or go too far set the fault word, and nothing else is touched.
TEST_F(GroupedGemmWgmmaTest, OffsetsThatAreWrongAreFaults) {
  const std::vector<std::vector<int32_t>> wrong = {
      {0, 200, 100, 300}, {0, 100, 200, 1 << 30}, {0, -5, 1 << 30, 300}, {7, 100, 200, 300}};
  for (const std::vector<int32_t>& offsets : wrong) {
    SCOPED_TRACE(absl::StrJoin(offsets, " "));
    Arrays arrays(*cuda_);
    const Case c{.rows = 40, .cols = 64, .counts = {100, 100, 100}};
    GroupedGemmArgs args = ArgsOf(c, arrays);
    args.places.offsets = arrays.Put(offsets);
    // As many values before y and behind it as y has.
    const size_t count = static_cast<size_t>(c.places() * args.y_stride);
    const std::vector<float> before(3 * count, 42.0f);
    uint32_t* stuck = arrays.Put(std::vector<uint32_t>{0});
    for (const WgmmaTiles& tiles : kWgmmaTiles) {
      SCOPED_TRACE(absl::StrCat("tiles of ", tiles.columns, ", clusters of ", tiles.cluster));
      args.places.fault = arrays.Put(std::vector<uint32_t>{0});
      float* const all = arrays.Put(before);
      args.y = all + count;
      ASSERT_TRUE(cuda_->Synchronize().ok());
      Run([&](Stream stream) {
        return LaunchGroupedGemmWgmma(args, tiles, c.multiprocessors, stuck, stream);
      });
      EXPECT_EQ(arrays.Get(args.places.fault, 1)[0], kFaultPlace);
      const std::vector<float> after = arrays.Get(all, 3 * count);
      EXPECT_TRUE(std::equal(after.begin(), after.begin() + count, before.begin()));
      EXPECT_TRUE(std::equal(after.end() - count, after.end(), before.begin()));
    }
  }
}

TEST_F(GroupedGemmWgmmaTest, WhatItCannotCompute) {
  Arrays arrays(*cuda_);
  const int32_t row = 0;
  GroupedGemmArgs args{.places = {.num_experts = 4, .end = 300, .max_places = 300, .x_rows = 300},
                       .format = DType::kBF16,
                       .maps = &row,
                       .most_rows = 40,
                       .cols = 64};
  EXPECT_TRUE(WgmmaCanComputeExperts(args));
  const auto with = [&](auto change) {
    GroupedGemmArgs changed = args;
    change(changed);
    return WgmmaCanComputeExperts(changed);
  };
  EXPECT_FALSE(with([](GroupedGemmArgs& a) { a.maps = nullptr; }));
  EXPECT_FALSE(with([&](GroupedGemmArgs& a) { a.places.rows = &row; })) << "rows are gathered";
  EXPECT_FALSE(with([](GroupedGemmArgs& a) { a.cols = 96; })) << "instructions end within a stage";
  EXPECT_FALSE(with([](GroupedGemmArgs& a) { a.rounded_first = 300; })) << "there are no rows";
  EXPECT_FALSE(with([](GroupedGemmArgs& a) { a.format = DType::kF32; }));
}

}  // namespace
}  // namespace verbatim::kernels::cuda

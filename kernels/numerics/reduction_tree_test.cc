// The streaming and the recursive tree agree, and the shape is the one the contract fixes.
#include "kernels/numerics/reduction_tree.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace verbatim::numerics {
namespace {

std::string Shape(int64_t first, int64_t count) {
  if (count == 1) return std::to_string(first);
  const int64_t left = (count + 1) / 2;
  return "(" + Shape(first, left) + "+" + Shape(first + left, count - left) + ")";
}

TEST(ReductionTree, ShapeIsTopDownWithTheLargerHalfLeft) {
  EXPECT_EQ(Shape(0, 5), "(((0+1)+2)+(3+4))");
  EXPECT_EQ(Shape(0, 12), "((((0+1)+2)+((3+4)+5))+(((6+7)+8)+((9+10)+11)))");
}

TEST(ReductionTree, StreamBuildsTheSameShape) {
  for (int64_t count = 1; count <= 300; ++count) {
    TreeStream<std::string> stream(count);
    int joins = 0;
    for (int64_t i = 0; i < count; ++i) {
      joins += JoinsAfter(i, count);
      stream.Push(std::to_string(i), [](const std::string& left, const std::string& right) {
        return "(" + left + "+" + right + ")";
      });
    }
    EXPECT_EQ(stream.Root(), Shape(0, count)) << count;
    EXPECT_EQ(joins, count - 1);
    EXPECT_LE((int64_t{1} << TreeDepth(count)) / 2, count);
    EXPECT_GE(int64_t{1} << TreeDepth(count), count);
  }
  static_assert(JoinsAfter(2, 5) == 1 && JoinsAfter(4, 5) == 2 && TreeDepth(5) == 3);
}

TEST(ReductionTree, SumsMatchAStreamAndBoundTheError) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal;
  for (int64_t length : {0, 1, 31, 32, 33, 127, 128, 129, 576, 1000, 1536, 5000}) {
    std::vector<float> x(length), w(length);
    for (int64_t i = 0; i < length; ++i) x[i] = normal(rng), w[i] = normal(rng);
    double exact = 0, squares = 0, dot = 0, absolute = 0;
    for (int64_t i = 0; i < length; ++i) {
      exact += x[i];
      squares += static_cast<double>(x[i]) * x[i];
      dot += static_cast<double>(x[i]) * w[i];
      absolute += std::fabs(static_cast<double>(x[i]) * w[i]) + std::fabs(x[i]) + x[i] * x[i];
    }
    // At most 4 adds a lane and chunk (128 for a dot), the tree, and the fold: depth below 150.
    const double tolerance = 150 * 0x1p-24 * absolute;
    EXPECT_NEAR(RowSum(x.data(), length), exact, tolerance) << length;
    EXPECT_NEAR(RowSumOfSquares(x.data(), length), squares, tolerance) << length;
    EXPECT_NEAR(TreeDot(x.data(), w.data(), length), dot, tolerance) << length;
    if (length == 0) continue;
    TreeStream<float> stream(ChunkCount(length));
    for (int64_t chunk = 0; chunk < ChunkCount(length); ++chunk) {
      float sum = 0;
      for (int64_t k = chunk * 128; k < std::min<int64_t>(length, chunk * 128 + 128); ++k) {
        sum = std::fma(x[k], w[k], sum);
      }
      stream.Push(sum, [](float left, float right) { return left + right; });
    }
    EXPECT_EQ(stream.Root(), TreeDot(x.data(), w.data(), length)) << length;
  }
}

TEST(ReductionTree, RowSumFoldsLanesByHalving) {
  // Values for which every other order gives another result: 2^24 absorbs single ones.
  std::vector<float> x(32, 0.0f);
  x[0] = 0x1p24f;
  x[8] = 1.0f;   // meets lane 0 in the second step
  x[24] = 1.0f;  // joins lane 8 in the first step: 8 and 24 give 2 before meeting 2^24
  EXPECT_EQ(RowSum(x.data(), 32), 0x1p24f + 2.0f);
  x[24] = 0.0f;
  x[16] = 1.0f;  // meets lane 0 in the first step and is absorbed, then lane 8 is too
  EXPECT_EQ(RowSum(x.data(), 32), 0x1p24f);
}

}  // namespace
}  // namespace verbatim::numerics

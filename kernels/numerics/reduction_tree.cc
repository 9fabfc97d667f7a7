// Scalar oracles of the reductions.
#include "kernels/numerics/reduction_tree.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace verbatim::numerics {
namespace {

using Lanes = std::array<float, kRowLanes>;

template <class Accumulate>
Lanes ReduceNode(const float* x, int64_t length, int64_t first, int64_t count,
                 Accumulate accumulate) {
  if (count > 1) {
    const int64_t left_count = LeftCount(count);
    Lanes left = ReduceNode(x, length, first, left_count, accumulate);
    const Lanes right = ReduceNode(x, length, first + left_count, count - left_count, accumulate);
    for (int j = 0; j < kRowLanes; ++j) left[j] = left[j] + right[j];
    return left;
  }
  Lanes lanes{};
  const int64_t begin = first * kChunkLength;
  const int64_t end = std::min(begin + kChunkLength, length);
  for (int64_t i = begin; i < end; ++i) {
    float& lane = lanes[(i - begin) % kRowLanes];
    lane = accumulate(x[i], lane);
  }
  return lanes;
}

template <class Accumulate>
float ReduceRow(const float* x, int64_t length, Accumulate accumulate) {
  if (length == 0) return 0.0f;
  Lanes lanes = ReduceNode(x, length, 0, ChunkCount(length), accumulate);
  for (int half = kRowLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] = lanes[j] + lanes[j + half];
  }
  return lanes[0];
}

}  // namespace

float TreeSum(const float* chunks, int64_t count) {
  if (count == 0) return 0.0f;
  if (count == 1) return chunks[0];
  const int64_t left = LeftCount(count);
  return TreeSum(chunks, left) + TreeSum(chunks + left, count - left);
}

float TreeDot(const float* a, const float* b, int64_t length) {
  std::vector<float> chunks(ChunkCount(length), 0.0f);
  for (int64_t k = 0; k < length; ++k) {
    float& chunk = chunks[k / kChunkLength];
    chunk = std::fma(a[k], b[k], chunk);
  }
  return TreeSum(chunks.data(), static_cast<int64_t>(chunks.size()));
}

float RowSum(const float* x, int64_t length) {
  return ReduceRow(x, length, [](float value, float lane) { return lane + value; });
}

float RowSumOfSquares(const float* x, int64_t length) {
  return ReduceRow(x, length, [](float value, float lane) { return std::fma(value, value, lane); });
}

}  // namespace verbatim::numerics

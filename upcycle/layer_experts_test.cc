// Experts of a small random layer.
#include "upcycle/layer_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/philox.h"

namespace verbatim::upcycle {
namespace {

using kernels::cpu::ThreadPool;
using ::testing::ElementsAre;

constexpr int64_t kNeurons = 24, kHidden = 50;

std::vector<float> Random(uint32_t stream, int64_t size, float scale) {
  std::vector<float> values(size);
  for (int64_t i = 0; i < size; ++i) {
    values[i] =
        scale * static_cast<float>(
                    numerics::PhiloxWord(11, stream, 0, static_cast<uint32_t>(i)) * 0x1p-31 - 1.0);
  }
  return values;
}

class LayerExpertsTest : public ::testing::Test {
 protected:
  LayerExpertsTest() {
    const auto stored = [](const std::vector<float>& values, int64_t rows, int64_t cols) {
      return kernels::StoredMatrix{kernels::DType::kF32, rows, cols,
                                   reinterpret_cast<const std::byte*>(values.data())};
    };
    dense_ = DecodeNeurons(stored(gate_, kNeurons, kHidden), stored(up_, kNeurons, kHidden),
                           stored(down_, kHidden, kNeurons));
  }
  std::vector<Expert> Make(int64_t size, double noise, uint64_t seed = 1, int threads = 1) {
    ThreadPool pool(threads);
    return MakeExperts(
        dense_, importance_,
        {.num_experts = 3, .intermediate_size = size, .noise = noise, .seed = seed, .layer = 4},
        pool);
  }

  const std::vector<float> gate_ = Random(1, kNeurons* kHidden, 1.0f);
  const std::vector<float> up_ = Random(2, kNeurons* kHidden, 0.5f);
  const std::vector<float> down_ = Random(3, kNeurons* kHidden, 2.0f);
  std::vector<double> importance_ = std::vector<double>(3 * kNeurons, 1.0);
  NeuronWeights dense_;
};

TEST_F(LayerExpertsTest, WithoutNoiseAndLossExpertsAreTheParentInBf16) {
  for (const Expert& expert : Make(kNeurons, 0)) {
    for (size_t i = 0; i < gate_.size(); ++i) {
      ASSERT_EQ(expert.gate[i], numerics::Bf16FromFloat(gate_[i]));
      ASSERT_EQ(expert.up[i], numerics::Bf16FromFloat(up_[i]));
      ASSERT_EQ(expert.down[i], numerics::Bf16FromFloat(down_[i]));
    }
  }
  EXPECT_EQ(MeanRelativeDifference(Make(kNeurons, 0), kNeurons, kHidden), 0);
}

TEST_F(LayerExpertsTest, KeepsTheMostImportantNeuronsInOrder) {
  // Expert 0 wants 20 and 3, expert 1 everything alike, expert 2 the last ones.
  importance_[20] = 5;
  importance_[3] = 4;
  for (int64_t j = 0; j < kNeurons; ++j) importance_[2 * kNeurons + j] = static_cast<double>(j);
  const std::vector<Expert> experts = Make(4, 0);
  EXPECT_THAT(experts[0].kept, ElementsAre(0, 1, 3, 20));
  EXPECT_THAT(experts[1].kept, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(experts[2].kept, ElementsAre(20, 21, 22, 23));
  const Expert& last = experts[2];
  for (int64_t k = 0; k < 4; ++k) {
    for (int64_t i = 0; i < kHidden; ++i) {
      EXPECT_EQ(last.gate[k * kHidden + i], numerics::Bf16FromFloat(gate_[(20 + k) * kHidden + i]));
      EXPECT_EQ(last.down[i * 4 + k], numerics::Bf16FromFloat(down_[i * kNeurons + 20 + k]));
    }
  }
  // Experts 0 and 2 share one neuron of four.
  EXPECT_GT(MeanRelativeDifference(experts, kNeurons, kHidden), 0.8);
}

TEST_F(LayerExpertsTest, NoiseHasTheSizeAskedForAndDiffersBetweenExperts) {
  constexpr double kNoise = 0.1;
  const std::vector<Expert> experts = Make(kNeurons, kNoise);
  double noise = 0, weights = 0;
  for (const Expert& expert : experts) {
    for (int64_t j = 0; j < kNeurons; ++j) {
      double row = 0, difference = 0;
      for (int64_t i = 0; i < kHidden; ++i) {
        const double value = gate_[j * kHidden + i];
        row += value * value;
        difference += std::pow(numerics::FloatFromBf16(expert.gate[j * kHidden + i]) - value, 2);
      }
      noise += difference / row;
      weights += 1;
    }
  }
  // The relative variance of a row's noise has mean kNoise² and, from 50 uniform numbers, a
  // standard deviation of √(0.8 / 50); over 72 rows that is 1.5 %. 8 % is five of them.
  EXPECT_NEAR(noise / weights / (kNoise * kNoise), 1.0, 0.08);
  // Two experts differ by noise of both.
  EXPECT_NEAR(MeanRelativeDifference(experts, kNeurons, kHidden), kNoise * std::sqrt(2.0), 0.01);
}

TEST_F(LayerExpertsTest, ThreadsDoNotShowButSeedsDo) {
  const std::vector<Expert> one = Make(20, 0.1, 1, 1), three = Make(20, 0.1, 1, 3);
  const std::vector<Expert> other = Make(20, 0.1, 2, 1);
  for (size_t e = 0; e < one.size(); ++e) {
    EXPECT_EQ(one[e].gate, three[e].gate);
    EXPECT_EQ(one[e].up, three[e].up);
    EXPECT_EQ(one[e].down, three[e].down);
    EXPECT_NE(one[e].gate, other[e].gate);
  }
}

TEST_F(LayerExpertsTest, ImportanceCountsTheDownRow) {
  WeighByDownRows(dense_, absl::MakeSpan(importance_));
  for (int64_t j = 0; j < kNeurons; ++j) {
    double squares = 0;
    for (int64_t i = 0; i < kHidden; ++i) squares += std::pow(down_[i * kNeurons + j], 2);
    for (int64_t e = 0; e < 3; ++e) {
      EXPECT_NEAR(importance_[e * kNeurons + j], squares, 1e-9 * squares);
    }
  }
}

}  // namespace
}  // namespace verbatim::upcycle

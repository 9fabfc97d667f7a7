// Joins of partial results: the tree's bits on every rank, whichever way the parts travel.
#include "parallel/partial_sums.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/reduction_tree.h"
#include "parallel/thread_communicator.h"

namespace verbatim::parallel {
namespace {

using kernels::NumericMode;
using kernels::Policy;

constexpr int64_t kMaxCount = 3 * kSlicedCount;

std::vector<float> Random(int64_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(rng);
  return values;
}

// Every rank joins its part; their results, by rank.
std::vector<std::vector<float>> JoinAll(const NumericMode& mode, int ranks, int64_t count,
                                        bool with_residual, bool in_place, bool round) {
  auto communicators = MakeThreadCommunicators(ranks);
  std::vector<std::vector<float>> results(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      auto backend = *kernels::cpu::CpuBackend::Create({.threads = 1});
      auto sums = PartialSums::Create(*backend, *communicators[r], kMaxCount);
      ASSERT_TRUE(sums.ok()) << sums.status();
      std::vector<float> partial = Random(count, 10 + static_cast<uint32_t>(r));
      std::vector<float> x = Random(count, 1);
      float* const y = in_place ? partial.data() : x.data();
      const absl::Status status =
          (*sums)->Join(mode, partial.data(), count, with_residual ? x.data() : nullptr, y, round);
      ASSERT_TRUE(status.ok()) << status;
      results[r] = in_place ? partial : x;
    });
  }
  for (std::thread& thread : threads) thread.join();
  communicators[0]->Close();
  return results;
}

TEST(PartialSumsTest, StrongPoliciesAddInTheOrderOfTheTree) {
  for (int ranks : {2, 4, 8}) {
    for (int64_t count : {int64_t{1}, int64_t{100}, kSlicedCount - 1, kSlicedCount, kMaxCount}) {
      for (bool with_residual : {false, true}) {
        SCOPED_TRACE(testing::Message() << ranks << " ranks, " << count << " elements");
        std::vector<std::vector<float>> parts;
        for (int r = 0; r < ranks; ++r) parts.push_back(Random(count, 10 + r));
        const std::vector<float> residual = Random(count, 1);
        std::vector<float> expected(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) {
          std::vector<float> column;
          for (const auto& part : parts) column.push_back(part[i]);
          expected[i] = numerics::TreeSum(column.data(), ranks);
          if (with_residual) expected[i] = residual[i] + expected[i];
        }
        for (bool in_place : {false, true}) {
          const auto results =
              JoinAll({.policy = Policy::kPinned}, ranks, count, with_residual, in_place, false);
          for (const std::vector<float>& result : results) {
            ASSERT_EQ(result.size(), expected.size());
            EXPECT_EQ(std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)),
                      0);
          }
        }
      }
    }
  }
}

TEST(PartialSumsTest, ThroughputAddsInAnyOrderAndRounds) {
  const NumericMode mode = {Policy::kThroughput, kernels::ActivationType::kBF16};
  const auto results = JoinAll(mode, 4, 1000, true, false, true);
  for (const std::vector<float>& result : results) {
    EXPECT_EQ(result, results[0]);
    for (size_t i = 0; i < result.size(); ++i) {
      double sum = Random(1000, 1)[i];
      for (int r = 0; r < 4; ++r) sum += Random(1000, 10 + r)[i];
      EXPECT_NEAR(result[i], sum, 0.01 + 0.005 * std::abs(sum));
      EXPECT_EQ(result[i], numerics::RoundToBf16(result[i]));
      if (HasFailure()) return;
    }
  }
}

TEST(PartialSumsTest, MoreThanThereIsRoomForIsRefused) {
  auto communicators = MakeThreadCommunicators(2);
  auto backend = *kernels::cpu::CpuBackend::Create({.threads = 1});
  auto sums = *PartialSums::Create(*backend, *communicators[0], 10);
  std::vector<float> x(11);
  EXPECT_EQ(sums->Join({}, x.data(), 11, nullptr, x.data(), false).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace verbatim::parallel

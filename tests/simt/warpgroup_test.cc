// Hopper on the emulator: what barriers, box copies and products of warpgroups compute, and that
// planted faults show.
#include "simt/warpgroup.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_sm90.cuh"
#include "kernels/numerics/bf16.h"
#include "simt/kernel_runs.h"

namespace verbatim::kernels::cuda {

namespace {

using ::testing::HasSubstr;

constexpr int kRows = 64, kOutputs = 128, kDepth = 64;
constexpr size_t kTokenBytes = kRows * 128, kBytes = 1024 + kTokenBytes + kOutputs * 128 + 64;

// What a kernel leaves out.
enum class Fault : uint8_t {
  kNone,
  kNoAsyncFence,
  kNoExpectation,
  kNoWait,
  kNoProductFence,
  kNoProductWait,
  kEarlyRefill,
  kWrongPhase,
  kOneWarpFewer,
  kWrongStart,
};

uint16_t Element(int64_t row, int64_t column) {
  return numerics::Bf16FromFloat(static_cast<float>((row * 31 + column * 7) % 23 - 11) * 0.125f);
}
float Widened(uint16_t bits) { return numerics::FloatFromBf16(bits); }

std::vector<uint16_t> Matrix(int64_t rows, int64_t cols) {
  std::vector<uint16_t> values(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows * cols; ++i) {
    values[static_cast<size_t>(i)] = Element(i / cols, i % cols);
  }
  return values;
}

struct Shared {
  unsigned char* bytes;
  uint64_t* barrier;
};
Shared Prepare(unsigned char* memory, Fault fault) {
  unsigned char* bytes = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
  auto* barrier = reinterpret_cast<uint64_t*>(bytes + kTokenBytes + kOutputs * 128);
  if (threadIdx.x == 0) {
    InitBarrier(barrier, 1);
    if (fault != Fault::kNoAsyncFence) FenceAsyncProxy();
  }
  SyncThreads();
  return {bytes, barrier};
}

// Copies a box of 64 rows from (row, column) on; out [64][64].
void CopyKernel(TensorMap map, int row, int column, Fault fault, float* out) {
  VERBATIM_SHARED_MEMORY(memory);
  const auto [bytes, barrier] = Prepare(memory, fault);
  if (threadIdx.x == 0) {
    ArriveAndExpect(barrier, fault == Fault::kNoExpectation ? 0 : kTokenBytes);
    LoadBox(bytes, map, column, row, barrier);
  }
  if (fault != Fault::kNoWait) WaitForPhase(barrier, fault == Fault::kWrongPhase ? 1 : 0);
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += 32) {
    for (int c = 0; c < kDepth; ++c) {
      uint16_t bits;
      std::memcpy(&bits, bytes + r * 128 + (((c / 8) ^ (r % 8)) * 16 + c % 8 * 2), 2);
      out[r * kDepth + c] = Widened(bits);
    }
  }
  SyncThreads();
  WaitForPhase(barrier, 0);
}

class WarpgroupTest : public testing::Test {
 protected:
  void TearDown() override { simt::SetSchedule({}); }

  static std::vector<float> Copied(const TensorMap& map, int row, int column, Fault fault) {
    std::vector<float> out(kRows * kDepth, -1.0f);
    LastFault().clear();
    Launch(CopyKernel, {1, 32, kBytes}, nullptr, map, row, column, fault, out.data());
    return out;
  }
};

TEST_F(WarpgroupTest, BoxesAreSwizzledAndZeroBeyondTheMatrix) {
  const std::vector<uint16_t> values = Matrix(100, 96);
  TensorMap map;
  ASSERT_EQ(MakeTensorMap(values.data(), 90, 100, 96 * 2, kRows, &map), 0);
  for (const simt::Schedule& schedule : kSchedules) {
    simt::SetSchedule(schedule);
    for (const auto& [row, column] : {std::pair{0, 0}, {36, 0}, {70, 64}, {64, 32}}) {
      const std::vector<float> out = Copied(map, row, column, Fault::kNone);
      ASSERT_EQ(LastFault(), "");
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kDepth; ++c) {
          const bool exists = row + r < 100 && column + c < 90;
          EXPECT_EQ(out[r * kDepth + c], exists ? Widened(Element(row + r, column + c)) : 0.0f)
              << r << ", " << c;
        }
      }
    }
  }
}

TEST_F(WarpgroupTest, RefusesMapsThatTheHardwareWould) {
  TensorMap map;
  alignas(16) uint16_t values[64] = {};
  EXPECT_NE(MakeTensorMap(values + 1, 64, 1, 128, 1, &map), 0);
  EXPECT_NE(MakeTensorMap(values, 64, 1, 130, 1, &map), 0);
  EXPECT_NE(MakeTensorMap(values, 64, 1, 128, 257, &map), 0);
}

TEST_F(WarpgroupTest, FaultsOfCopiesShow) {
  const std::vector<uint16_t> values = Matrix(64, 64);
  TensorMap map;
  ASSERT_EQ(MakeTensorMap(values.data(), 64, 64, 128, kRows, &map), 0);
  for (const simt::Schedule& schedule : kSchedules) {
    simt::SetSchedule(schedule);
    Copied(map, 0, 0, Fault::kNoAsyncFence);
    EXPECT_THAT(LastFault(), HasSubstr("a barrier that no fence made known"));
    Copied(map, 0, 0, Fault::kNoExpectation);
    EXPECT_THAT(LastFault(), HasSubstr("ends with "));
#if !defined(__SANITIZE_THREAD__)  // a planted race
    EXPECT_TRUE(std::isnan(Copied(map, 0, 0, Fault::kNoWait)[0]));
    EXPECT_TRUE(std::isnan(Copied(map, 0, 0, Fault::kWrongPhase)[0]));
#endif
  }
}

void NothingComesKernel(float*) {
  VERBATIM_SHARED_MEMORY(memory);
  const auto [bytes, barrier] = Prepare(memory, Fault::kNone);
  WaitForPhase(barrier, 0);
}
TEST_F(WarpgroupTest, ReportsAPhaseThatNeverEnds) {
  float out = 0;
  EXPECT_NE(Launch(NothingComesKernel, {1, 32, kBytes}, nullptr, &out), 0);
  EXPECT_THAT(LastFault(), HasSubstr("warpgroup_test.cc:"));
  EXPECT_THAT(LastFault(), HasSubstr("a phase of a barrier that never ends"));
}

void UnknownBarrierKernel(float*) {
  VERBATIM_SHARED_MEMORY(memory);
  WaitForPhase(reinterpret_cast<uint64_t*>(memory), 0);
}
TEST_F(WarpgroupTest, ReportsABarrierThatIsNone) {
  float out = 0;
  EXPECT_NE(Launch(UnknownBarrierKernel, {1, 32, kBytes}, nullptr, &out), 0);
  EXPECT_THAT(LastFault(), HasSubstr("no barrier was initialised here"));
}

// Each of two blocks brings half of 64 rows to both, twice to the same place; out [2
// blocks][64][64] of the second time.
void ClusterKernel(TensorMap half, Fault fault, float* out) {
  VERBATIM_SHARED_MEMORY(memory);
  const auto [bytes, full] = Prepare(memory, Fault::kNone);
  uint64_t* const empty = full + 1;
  if (threadIdx.x == 0) {
    InitBarrier(empty, 2);
    FenceAsyncProxy();
  }
  SyncCluster();
  const int rank = static_cast<int>(ClusterRank());
  for (uint32_t turn = 0; turn < 2; ++turn) {
    if (threadIdx.x == 0) {
      if (fault != Fault::kEarlyRefill) WaitForPhase(empty, turn ^ 1);
      ArriveAndExpect(full, kTokenBytes);
      LoadBoxForAll(bytes + rank * kTokenBytes / 2, half, 0, rank * kRows / 2, full, 3);
    }
    SyncWarp();
    WaitForPhase(full, turn);
    for (int r = static_cast<int>(threadIdx.x); r < kRows; r += 32) {
      for (int c = 0; c < kDepth; ++c) {
        uint16_t bits;
        std::memcpy(&bits, bytes + r * 128 + (((c / 8) ^ (r % 8)) * 16 + c % 8 * 2), 2);
        float* const to = &out[(rank * kRows + r) * kDepth + c];
        *to = turn == 0 || !std::isnan(*to) ? Widened(bits) : *to;
      }
    }
    SyncWarp();
    if (threadIdx.x < 2) ArriveAtRank(empty, threadIdx.x);
  }
  if (fault != Fault::kNoWait) SyncCluster();
}

TEST_F(WarpgroupTest, BlocksOfAClusterBringHalfEach) {
  const std::vector<uint16_t> values = Matrix(kRows, kDepth);
  TensorMap half;
  ASSERT_EQ(MakeTensorMap(values.data(), kDepth, kRows, 128, kRows / 2, &half), 0);
  int wrong = 0, ended = 0;
  for (const simt::Schedule& schedule : kSchedules) {
    simt::SetSchedule(schedule);
    for (Fault fault : {Fault::kNone, Fault::kEarlyRefill, Fault::kNoWait}) {
      std::vector<float> out(4 * kRows * kDepth, -1.0f);
      LastFault().clear();
      Launch(ClusterKernel, {4, 32, kBytes, 2}, nullptr, half, fault, out.data());
      if (fault == Fault::kEarlyRefill) {
        for (float value : out) wrong += std::isnan(value) ? 1 : 0;
        continue;
      }
      if (fault == Fault::kNoWait) {
        ended += LastFault().find("or that has ended") != std::string::npos ? 1 : 0;
        continue;
      }
      ASSERT_EQ(LastFault(), "");
      for (int r = 0; r < 2 * kRows; ++r) {
        for (int c = 0; c < kDepth; ++c) {
          ASSERT_EQ(out[r * kDepth + c], Widened(Element(r % kRows, c))) << r << ", " << c;
        }
      }
    }
  }
  EXPECT_GT(ended, 0) << "a block that ends while the other still writes to it must show";
#if !defined(__SANITIZE_THREAD__)
  EXPECT_GT(wrong, 0) << "a place that is filled before the other block has read it must show";
#endif
  std::vector<float> out(4 * kRows * kDepth);
  EXPECT_NE(Launch(ClusterKernel, {3, 32, kBytes, 2}, nullptr, half, Fault::kNone, out.data()), 0);
  EXPECT_THAT(LastFault(), HasSubstr("a grid of 3 blocks in clusters of 2"));
}

// d [64][128] = a [64][64] · b [128][64]ᵀ by one warpgroup, one committed group of four products.
void ProductKernel(TensorMap a, TensorMap b, Fault fault, float* d) {
  VERBATIM_SHARED_MEMORY(memory);
  const Shared shared = Prepare(memory, Fault::kNone);
  unsigned char* const bytes = shared.bytes;
  uint64_t* const barrier = shared.barrier;
  unsigned char* const weights = bytes + kTokenBytes;
  const auto load = [&](unsigned char* to) {
    LoadBox(to, a, 0, 0, barrier);
    LoadBox(to + kTokenBytes, b, 0, 0, barrier);
  };
  if (threadIdx.x == 0) {
    ArriveAndExpect(barrier, kTokenBytes + kOutputs * 128);
    load(bytes);
  }
  if (fault != Fault::kNoWait) WaitForPhase(barrier, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float sums[kOutputs / 2] = {};
  if (fault != Fault::kNoProductFence) WgmmaFence(sums);
  const int steps = fault == Fault::kOneWarpFewer && warp == 2 ? 3 : 4;
  for (int step = 0; step < steps; ++step) {
    WgmmaBf16<kOutputs>(sums, SharedMatrix(bytes, step),
                        SharedMatrix(weights + (fault == Fault::kWrongStart ? 128 : 0), step));
  }
  WgmmaCommit();
  if (fault == Fault::kEarlyRefill && threadIdx.x == 0) {
    ArriveAndExpect(barrier, kTokenBytes + kOutputs * 128);
    load(bytes);
  }
  if (fault != Fault::kNoProductWait) WgmmaWaitForAll(sums);
  for (int i = 0; i < kOutputs / 2; ++i) {
    const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8;
    d[row * kOutputs + i / 4 * 8 + 2 * (lane % 4) + i % 2] = sums[i];
  }
  if (fault == Fault::kEarlyRefill) WaitForPhase(barrier, 1);
  if (fault == Fault::kNoWait) WaitForPhase(barrier, 0);
}

struct ProductOf {
  std::vector<uint16_t> a = Matrix(kRows, kDepth), b = Matrix(kOutputs, kDepth);
  std::vector<float> d = std::vector<float>(kRows * kOutputs, -1.0f);

  int Run(Fault fault) {
    TensorMap map_a, map_b;
    EXPECT_EQ(MakeTensorMap(a.data(), kDepth, kRows, 128, kRows, &map_a), 0);
    EXPECT_EQ(MakeTensorMap(b.data(), kDepth, kOutputs, 128, kOutputs, &map_b), 0);
    LastFault().clear();
    return Launch(ProductKernel, {1, 128, kBytes}, nullptr, map_a, map_b, fault, d.data());
  }
};

TEST_F(WarpgroupTest, ProductsOfBoxes) {
  for (const simt::Schedule& schedule : kSchedules) {
    simt::SetSchedule(schedule);
    ProductOf product;
    ASSERT_EQ(product.Run(Fault::kNone), 0) << LastFault();
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kOutputs; ++column) {
        float expected = 0;
        for (int k = 0; k < kDepth; ++k) {
          expected += Widened(Element(row, k)) * Widened(Element(column, k));
        }
        ASSERT_EQ(product.d[row * kOutputs + column], expected) << row << ", " << column;
      }
    }
  }
}

TEST_F(WarpgroupTest, FaultsOfProductsShow) {
  const auto fault_of = [](Fault fault) {
    ProductOf product;
    EXPECT_NE(product.Run(fault), 0);
    return LastFault();
  };
  for (const simt::Schedule& schedule : kSchedules) {
    simt::SetSchedule(schedule);
    EXPECT_THAT(fault_of(Fault::kNoProductFence), HasSubstr("accumulators that no fence ordered"));
    EXPECT_THAT(fault_of(Fault::kNoProductWait), HasSubstr("products that were never waited for"));
    EXPECT_THAT(fault_of(Fault::kOneWarpFewer), HasSubstr("issued fewer products"));
    EXPECT_THAT(fault_of(Fault::kWrongStart), HasSubstr("not at a multiple of 1024"));
  }
}

// Operands that are not there yet, or not there any more when they may still be read.
TEST_F(WarpgroupTest, OperandsAreReadAtTheWorstTime) {
  for (Fault fault : {Fault::kNoWait, Fault::kEarlyRefill}) {
    int wrong = 0;
    for (const simt::Schedule& schedule : kSchedules) {
      simt::SetSchedule(schedule);
      ProductOf product;
      ASSERT_EQ(product.Run(fault), 0) << LastFault();
      for (float value : product.d) wrong += std::isnan(value) ? 1 : 0;
    }
    EXPECT_GT(wrong, 0) << static_cast<int>(fault);
  }
}

}  // namespace
}  // namespace verbatim::kernels::cuda

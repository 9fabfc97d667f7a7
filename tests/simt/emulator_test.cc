// The emulator's own tests: what it computes, and that it catches planted faults.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.cuh"
#include "kernels/numerics/bf16.h"
#include "simt/kernel_runs.h"

namespace verbatim::kernels::cuda {

namespace {

using ::testing::HasSubstr;

// Runs under every schedule; what it wrote, or the fault.
template <class Kernel>
std::vector<std::string> RunAll(Kernel kernel, unsigned int threads, size_t shared_bytes,
                                std::vector<float>* out, std::vector<std::vector<float>>* outs,
                                unsigned int blocks = 1) {
  std::vector<std::string> faults;
  for (const simt::Schedule& schedule : kSchedules) {
    simt::SetSchedule(schedule);
    std::fill(out->begin(), out->end(), -1.0f);
    LastFault().clear();
    const int code = Launch(kernel, {blocks, threads, shared_bytes}, nullptr, out->data());
    EXPECT_EQ(code != 0, !LastFault().empty());
    faults.push_back(LastFault());
    outs->push_back(*out);
  }
  simt::SetSchedule({});
  return faults;
}

// Each thread reads what its neighbour wrote: needs a barrier between.
template <bool kBarrier>
void NeighbourKernel(float* out) {
  VERBATIM_SHARED_MEMORY(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  const unsigned int i = threadIdx.x;
  shared[i] = static_cast<float>(i);
  if constexpr (kBarrier) SyncThreads();
  out[blockIdx.x * blockDim.x + i] = shared[(i + 1) % blockDim.x];
}

TEST(EmulatorTest, BarriersOrderSharedMemoryUnderEverySchedule) {
  std::vector<float> out(128);
  std::vector<std::vector<float>> outs;
  for (const std::string& fault :
       RunAll(NeighbourKernel<true>, 64, 64 * sizeof(float), &out, &outs, 2)) {
    EXPECT_EQ(fault, "");
  }
  for (const auto& result : outs) {
    for (int i = 0; i < 128; ++i) EXPECT_EQ(result[i], static_cast<float>((i + 1) % 64));
  }
}

#if !defined(__SANITIZE_THREAD__)  // a planted race, which it reports
TEST(EmulatorTest, AMissingBarrierGivesWrongResultsInSomeSchedule) {
  std::vector<float> out(64);
  std::vector<std::vector<float>> outs;
  RunAll(NeighbourKernel<false>, 64, 64 * sizeof(float), &out, &outs);
  int wrong = 0;
  for (const auto& result : outs) {
    for (int i = 0; i < 64; ++i) wrong += result[i] != static_cast<float>((i + 1) % 64) ? 1 : 0;
  }
  EXPECT_GT(wrong, 0);
  EXPECT_TRUE(std::isnan(outs[0][0])) << "unwritten shared memory must be poisoned";
}
#endif

void WarpKernel(float* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float sum = static_cast<float>(threadIdx.x);
  for (int half = 16; half > 0; half /= 2) sum += ShuffleXor(sum, half);
  const float down = ShuffleDown(static_cast<float>(lane), 3);
  const float up = ShuffleUp(static_cast<float>(lane), 3);
  const float fifth = Shuffle(static_cast<float>(lane), 5);
  const uint32_t odd = Ballot(lane % 2 == 1);
  const bool correct = down == static_cast<float>(lane < 29 ? lane + 3 : lane) &&
                       up == static_cast<float>(lane >= 3 ? lane - 3 : lane) && fifth == 5.0f &&
                       odd == 0xaaaaaaaau && AnyLane(lane == 7) && !AllLanes(lane == 7);
  out[threadIdx.x] = correct ? sum : -1.0f;
}

TEST(EmulatorTest, ShufflesAndVotes) {
  std::vector<float> out(64);
  std::vector<std::vector<float>> outs;
  for (const std::string& fault : RunAll(WarpKernel, 64, 0, &out, &outs)) EXPECT_EQ(fault, "");
  for (const auto& result : outs) {
    for (int i = 0; i < 64; ++i) EXPECT_EQ(result[i], i < 32 ? 496.0f : 1520.0f);
  }
}

// The other half of a warp's exchange goes through shared memory.
template <bool kSync>
void WarpMemoryKernel(float* out) {
  VERBATIM_SHARED_MEMORY(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (kSync) SyncWarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

TEST(EmulatorTest, SyncWarpOrdersMemory) {
  std::vector<float> out(32);
  std::vector<std::vector<float>> outs;
  RunAll(WarpMemoryKernel<true>, 32, 128, &out, &outs);
  for (const auto& result : outs) {
    for (int i = 0; i < 32; ++i) EXPECT_EQ(result[i], static_cast<float>(i ^ 1));
  }
}

#if !defined(__SANITIZE_THREAD__)
TEST(EmulatorTest, AMissingSyncWarpShows) {
  std::vector<float> out(32);
  std::vector<std::vector<float>> outs;
  RunAll(WarpMemoryKernel<false>, 32, 128, &out, &outs);
  EXPECT_TRUE(std::isnan(outs[0][0]));
}
#endif

void ExpectFault(void (*kernel)(float*), const std::string& text, unsigned int threads = 64) {
  std::vector<float> out(threads);
  std::vector<std::vector<float>> outs;
  for (const std::string& fault : RunAll(kernel, threads, 64, &out, &outs)) {
    EXPECT_THAT(fault, HasSubstr(text));
    EXPECT_THAT(fault, HasSubstr("emulator_test.cc:"));
  }
}

void EarlyExitKernel(float* out) {
  if (threadIdx.x == 3) return;
  SyncThreads();
  out[threadIdx.x] = 1;
}
TEST(EmulatorTest, ReportsAThreadThatEndsBeforeABarrier) {
  ExpectFault(EarlyExitKernel, "thread (3, 0, 0) of block (0, 0, 0) ended before the barrier at");
}

void DivergentBarrierKernel(float* out) {
  if (threadIdx.x < 32) {
    SyncThreads();
    out[threadIdx.x] = 1;
  } else {
    SyncThreads();
    out[threadIdx.x] = 2;
  }
}
TEST(EmulatorTest, ReportsDivergentBarriers) {
  ExpectFault(DivergentBarrierKernel, "divergent barrier");
}

void DivergentShuffleKernel(float* out) {
  float x = 1;
  if (threadIdx.x % 2 == 0) {
    x = ShuffleXor(x, 1);
  } else {
    x = ShuffleXor(x, 2);
  }
  out[threadIdx.x] = x;
}
TEST(EmulatorTest, ReportsDivergentWarpOperations) {
  ExpectFault(DivergentShuffleKernel, "divergent warp operation");
}

void PartialMaskKernel(float* out) { out[threadIdx.x] = ShuffleXor(1.0f, 1, 0xffffu); }
TEST(EmulatorTest, ReportsPartialMasks) { ExpectFault(PartialMaskKernel, "mask that is not full"); }

void MissingLaneKernel(float* out) {
  float x = 1;
  if (threadIdx.x != 40) x = ShuffleXor(x, 1);
  out[threadIdx.x] = x;
}
TEST(EmulatorTest, ReportsLanesThatNeverCome) { ExpectFault(MissingLaneKernel, "has ended"); }

void BarrierAgainstShuffleKernel(float* out) {
  if (threadIdx.x == 0) {
    SyncThreads();
  } else {
    out[threadIdx.x] = ShuffleXor(1.0f, 1);
  }
}
TEST(EmulatorTest, ReportsALaneAtABarrier) {
  ExpectFault(BarrierAgainstShuffleKernel, "waits in a warp operation", 32);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void OverflowKernel(float*) {
  VERBATIM_SHARED_MEMORY(bytes);
  bytes[64 + threadIdx.x % 8] = 0;
}
TEST(EmulatorTest, ReportsWritesPastSharedMemory) {
  std::vector<float> out(32);
  std::vector<std::vector<float>> outs;
  for (const std::string& fault : RunAll(OverflowKernel, 32, 64, &out, &outs)) {
    EXPECT_THAT(fault, HasSubstr("wrote past its 64 bytes of shared memory"));
  }
}
#endif

TEST(EmulatorTest, RefusesBadLaunchShapes) {
  float x = 0;
  EXPECT_NE(Launch(WarpKernel, {1, 33, 0}, nullptr, &x), 0);
  EXPECT_THAT(LastFault(), HasSubstr("multiple of 32"));
  EXPECT_NE(Launch(WarpKernel, {0, 32, 0}, nullptr, &x), 0);
  EXPECT_NE(Launch(WarpKernel, {dim3(1, 70000), 32, 0}, nullptr, &x), 0);
  EXPECT_NE(Launch(WarpKernel, {1, 2048, 0}, nullptr, &x), 0);
}

template <int kPending>
void CopyKernel(const float* in, float* out) {
  VERBATIM_SHARED_MEMORY(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  const int i = static_cast<int>(threadIdx.x);
  CopyAsync16(shared + 8 * i, in + 8 * i, 16);
  CopyAsyncCommit();
  CopyAsync16(shared + 8 * i + 4, in + 8 * i + 4, 8);
  CopyAsyncCommit();
  CopyAsyncWait<kPending>();
  SyncThreads();
  for (int j = 0; j < 8; ++j) out[8 * i + j] = shared[8 * ((i + 1) % 32) + j];
  CopyAsyncWait<0>();
}

TEST(EmulatorTest, AsynchronousCopiesArriveAtTheirWaitAndNotBefore) {
  alignas(16) float in[256];
  std::vector<float> out(256);
  for (int i = 0; i < 256; ++i) in[i] = static_cast<float>(i);
  ASSERT_EQ(Launch(CopyKernel<0>, {1, 32, 1024}, nullptr, in, out.data()), 0);
  for (int i = 0; i < 256; ++i) {
    const int source = (i + 8) % 256;
    EXPECT_EQ(out[i], source % 8 < 6 ? static_cast<float>(source) : 0.0f) << i;
  }
#if !defined(__SANITIZE_THREAD__)  // a planted race
  ASSERT_EQ(Launch(CopyKernel<1>, {1, 32, 1024}, nullptr, in, out.data()), 0);
  EXPECT_EQ(out[0], 8.0f);
  EXPECT_TRUE(std::isnan(out[4])) << "a weak wait must show";
#endif
}

void UnfinishedCopyKernel(const float* in, float*) {
  VERBATIM_SHARED_MEMORY(bytes);
  CopyAsync16(bytes + 16 * threadIdx.x, in, 16);
  CopyAsyncCommit();
}
TEST(EmulatorTest, ReportsCopiesThatNothingWaitsFor) {
  alignas(16) float in[4] = {};
  float out = 0;
  EXPECT_NE(Launch(UnfinishedCopyKernel, {1, 32, 512}, nullptr, in, &out), 0);
  EXPECT_THAT(LastFault(), HasSubstr("never waited for"));
}

// d [16, 8] = a [16, 16] · bᵀ, b stored as [8, 16] and loaded by LoadMatrixX4, or as its transpose
// [16, 8] and loaded transposed.
template <bool kTransposed>
void MmaKernel(const uint16_t* a, const uint16_t* b, float* d) {
  VERBATIM_SHARED_MEMORY(bytes);
  uint16_t* shared_a = reinterpret_cast<uint16_t*>(bytes);
  uint16_t* shared_b = shared_a + 256;
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared_a[i] = a[i];
  for (int i = lane; i < 128; i += 32) shared_b[i] = b[i];
  SyncWarp();
  uint32_t fragment_a[4], both[4];
  LoadMatrixX4(fragment_a, shared_a + (lane % 16) * 16 + lane / 16 * 8);
  if constexpr (kTransposed) {
    LoadMatrixX4Transposed(both, shared_b + (lane % 16) * 8);
  } else {
    LoadMatrixX4(both, shared_b + (lane % 8) * 16 + lane / 8 % 2 * 8);
  }
  const uint32_t fragment_b[2] = {both[0], both[1]};
  float sum[4] = {};
  MmaBf16(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sum[i];
}

template <bool kTransposed>
void ExpectProductOfFragments() {
  alignas(16) uint16_t a[256], b[128];
  float d[128];
  for (int i = 0; i < 256; ++i) a[i] = numerics::Bf16FromFloat(static_cast<float>(i % 7 - 3));
  for (int i = 0; i < 128; ++i) b[i] = numerics::Bf16FromFloat(static_cast<float>(i % 5 - 2));
  ASSERT_EQ(Launch(MmaKernel<kTransposed>, {1, 32, 768}, nullptr, a, b, d), 0) << LastFault();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 0;
      for (int k = 0; k < 16; ++k) {
        const int at = kTransposed ? k * 8 + column : column * 16 + k;  // in b
        expected += static_cast<float>(((row * 16 + k) % 7 - 3) * (at % 5 - 2));
      }
      EXPECT_EQ(d[row * 8 + column], expected) << row << ", " << column;
    }
  }
}

TEST(EmulatorTest, MatrixUnitMultipliesFragments) { ExpectProductOfFragments<false>(); }

TEST(EmulatorTest, TransposedFragments) { ExpectProductOfFragments<true>(); }

void AtomicKernel(uint64_t* sums) {
  AtomicAdd(&sums[0], uint64_t{threadIdx.x});
  AtomicMax(&sums[1], uint64_t{threadIdx.x + 100 * blockIdx.x});
  AtomicMin(&sums[2], uint64_t{threadIdx.x + 100 * blockIdx.x + 1});
  AtomicOr(&sums[3], uint64_t{1} << threadIdx.x);
}
TEST(EmulatorTest, Atomics) {
  for (const simt::Schedule& schedule : kSchedules) {
    simt::SetSchedule(schedule);
    uint64_t sums[4] = {0, 0, ~uint64_t{0}, 0};
    ASSERT_EQ(Launch(AtomicKernel, {3, 64, 0}, nullptr, sums), 0);
    EXPECT_EQ(sums[0], 3u * 2016u);
    EXPECT_EQ(sums[1], 263u);
    EXPECT_EQ(sums[2], 1u);
    EXPECT_EQ(sums[3], ~uint64_t{0});
  }
  simt::SetSchedule({});
}

void IndexKernel(float* out) {
  const unsigned int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * 64 + thread] = static_cast<float>(block * 64 + thread);
}
TEST(EmulatorTest, IndicesOfThreeDimensions) {
  std::vector<float> out(12 * 64, -1.0f);
  ASSERT_EQ(Launch(IndexKernel, {dim3(2, 3, 2), dim3(8, 4, 2), 0}, nullptr, out.data()), 0);
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], static_cast<float>(i));
}

}  // namespace
}  // namespace verbatim::kernels::cuda

// What tests of products by wgmma have in common: a device that has it, and launches on a stream of
// their own.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "kernels/cuda/backend_pair_test.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {

// Values whose magnitudes spread over many powers of two, some of them zero.
inline std::vector<float> SpreadFloats(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) {
    const int exponent = static_cast<int>(rng() % 33) - 16;
    v = rng() % 16 == 0 ? 0.0f : std::ldexp(normal(rng), exponent);
  }
  return values;
}

class WgmmaTest : public BackendPairTest {
 protected:
  void SetUp() override {
    BackendPairTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    Arrays arrays(*cuda_);
    uint32_t* answer = arrays.Put(std::vector<uint32_t>{7});
    auto info = runtime::OpenDevice(0);
    ASSERT_TRUE(info.ok());
    if (!test_device::Emulated() && info->major != 9) GTEST_SKIP() << "the device has no wgmma";
    if (cuda_->Describe().find("(as asked)") != std::string::npos) {
      GTEST_SKIP() << "VERBATIM_PINNED_GEMM forbids it";
    }
    for (const SharedNeeds& needs : {GemmPinnedWgmmaNeeds(), GroupedGemmWgmmaNeeds()}) {
      const absl::Status allowed = AllowSharedMemory(*info, needs);
      ASSERT_TRUE(allowed.ok()) << allowed;
    }
    Run([&](Stream stream) { return LaunchWgmmaProbe(answer, stream); });
    ASSERT_EQ(arrays.Get(answer, 1)[0], 1u) << "this program has no code for sm_90a";
  }

  template <class Launch>
  void Run(Launch launch) {
    auto stream = runtime::CreateStream();
    ASSERT_TRUE(stream.ok());
    EXPECT_TRUE(runtime::LaunchStatus("test", launch(*stream)).ok());
    const absl::Status status = runtime::Synchronize(*stream);
    EXPECT_TRUE(status.ok()) << status;
    runtime::DestroyStream(*stream);
  }
};

}  // namespace verbatim::kernels::cuda

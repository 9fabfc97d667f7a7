// A CUDA backend and a CPU backend side by side, for tests that compare them bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/test_device.h"

namespace verbatim::kernels::cuda {

inline std::vector<float> RandomFloats(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

inline uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Equal bits, where every NaN equals every other: the contract fixes where one appears, not which.
inline testing::AssertionResult SameBits(const std::vector<float>& expected,
                                         const std::vector<float>& actual) {
  if (expected.size() != actual.size()) return testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    if (BitsOf(expected[i]) != BitsOf(actual[i])) {
      return testing::AssertionFailure() << "element " << i << ": expected " << std::hexfloat
                                         << expected[i] << ", got " << actual[i];
    }
  }
  return testing::AssertionSuccess();
}

// Arrays of one backend.
class Arrays {
 public:
  explicit Arrays(Backend& backend) : backend_(backend) {}

  template <class T>
  T* Put(const std::vector<T>& values) {
    auto buffer = backend_.Allocate(values.size() * sizeof(T));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    T* data = static_cast<T*>((*buffer)->data());
    EXPECT_TRUE(backend_.CopyToDevice(data, values.data(), values.size() * sizeof(T)).ok());
    buffers_.push_back(*std::move(buffer));
    return data;
  }
  // An array of NaN.
  float* Poisoned(size_t count) { return Put(std::vector<float>(count, std::nanf(""))); }
  template <class T>
  std::vector<T> Get(const T* data, size_t count) {
    std::vector<T> values(count);
    const absl::Status status = backend_.CopyToHost(values.data(), data, count * sizeof(T));
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }

 private:
  Backend& backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

class BackendPairTest : public testing::Test {
 protected:
  void SetUp() override {
    auto cpu = cpu::CpuBackend::Create({.threads = 1});
    ASSERT_TRUE(cpu.ok()) << cpu.status();
    cpu_ = *std::move(cpu);
    auto cuda =
        CudaBackend::Create({.library_workspace_bytes = size_t{1} << 16,
                             .weight_block_bytes = test_device::Emulated() ? 0 : size_t{1} << 20,
                             .workspace_bytes = size_t{4} << 20,
                             .table_bytes = 1 << 16,
                             .staging_slot_bytes = 4096,
                             .sampling_scratch_bytes = 1 << 20,
                             .sampling_list_bytes = 1 << 20});
    ASSERT_TRUE(cuda.ok()) << cuda.status();
    cuda_ = *std::move(cuda);
  }
  void TearDown() override { test_device::UseSchedule(0); }

  // Runs `work` on the CPU, then on the device under every schedule; all results have equal bits.
  using Work = std::function<std::vector<float>(Backend& backend)>;
  void ExpectSameBits(const Work& work) {
    const std::vector<float> expected = work(*cpu_);
    for (int i = 0; i < test_device::Schedules(); ++i) {
      const std::string name = test_device::UseSchedule(i);
      EXPECT_TRUE(SameBits(expected, work(*cuda_))) << name;
    }
    test_device::UseSchedule(0);
  }

  std::unique_ptr<Backend> cpu_, cuda_;
};

}  // namespace verbatim::kernels::cuda

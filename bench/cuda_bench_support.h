// What the programs that measure the CUDA backend share: random values, medians, and the end of the
// program on any error, because a benchmark has no caller to answer to.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::bench {

using Clock = std::chrono::steady_clock;

inline double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Prints and ends the program.
inline void Check(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "cuda_bench: %s: %s\n", what, std::string(status.message()).c_str());
  std::exit(1);
}
template <class T>
T Value(absl::StatusOr<T> value, const char* what) {
  Check(value.status(), what);
  return *std::move(value);
}

// Median seconds of one call: after a warm-up, batches of calls of about 20 ms, each ended by wait.
inline double MedianSeconds(const std::function<void(int)>& call,
                            const std::function<void()>& wait) {
  int n = 0;
  for (int i = 0; i < 3; ++i) call(n++);
  wait();
  Clock::time_point start = Clock::now();
  for (int i = 0; i < 3; ++i) call(n++);
  wait();
  const double rough = SecondsSince(start) / 3;
  const int calls = std::clamp(static_cast<int>(0.02 / rough), 1, 2000);
  std::vector<double> times;
  for (int repeat = 0; repeat < 7; ++repeat) {
    start = Clock::now();
    for (int i = 0; i < calls; ++i) call(n++);
    wait();
    times.push_back(SecondsSince(start) / calls);
  }
  std::nth_element(times.begin(), times.begin() + 3, times.end());
  return times[3];
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t Next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  // Roughly uniform in ±0.05.
  uint16_t Bf16() {
    const float x = (static_cast<float>(Next() >> 40) * 0x1p-24f - 0.5f) * 0.1f;
    return numerics::Bf16FromFloat(x);
  }
  float Float() { return (static_cast<float>(Next() >> 40) * 0x1p-24f - 0.5f) * 2.0f; }

 private:
  uint64_t state_;
};

inline std::vector<uint16_t> RandomBf16(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint16_t> values(count);
  for (uint16_t& v : values) v = random.Bf16();
  return values;
}
inline std::vector<float> RandomFloats(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& v : values) v = random.Float();
  return values;
}

inline std::unique_ptr<kernels::Buffer> Upload(kernels::Backend& backend, const void* data,
                                               size_t size_bytes) {
  std::unique_ptr<kernels::Buffer> buffer = Value(backend.Allocate(size_bytes), "allocate");
  Check(backend.CopyToDevice(buffer->data(), data, size_bytes), "copy");
  return buffer;
}
inline float* FloatsOf(const std::unique_ptr<kernels::Buffer>& buffer) {
  return static_cast<float*>(buffer->data());
}

}  // namespace verbatim::bench

// Philox4x32-10 in kernels.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/numerics/philox.h"

namespace verbatim::kernels::cuda {

// Turns the counter in `words` into four random words.
__device__ __forceinline__ void Philox(uint64_t key, uint32_t (&words)[4]) {
  using namespace numerics::philox;  // NOLINT(google-build-using-namespace): constants
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint32_t high0 = MultiplyHigh(kMul0, words[0]), low0 = kMul0 * words[0];
    const uint32_t high1 = MultiplyHigh(kMul1, words[2]), low1 = kMul1 * words[2];
    words[0] = high1 ^ words[1] ^ key0;
    words[2] = high0 ^ words[3] ^ key1;
    words[1] = low1;
    words[3] = low0;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
}

}  // namespace verbatim::kernels::cuda

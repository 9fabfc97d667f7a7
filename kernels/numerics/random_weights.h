// Weights that no file holds: bf16 values that are a function of seed, matrix and place, the same
// on every machine and device, so that nobody has to store or send them.
#pragma once

#include <cstdint>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/host_device.h"

namespace verbatim::numerics {

// Value i of a matrix is element first + i of its sequence. Element e takes word e mod 4 of
// Philox4x32-10 with the counter (e / 4, matrix), low halves first, and the seed as key.
struct RandomWeights {
  uint64_t seed = 0;
  uint64_t matrix = 0;
  int64_t first = 0;
};

// The bf16 bits that a word stands for: the sum of its two halves, uniform on -2^15 … 2^15 - 1
// each, and 1, times 2^-20, rounded once. Symmetric about 0, within ±0.0625, standard deviation
// 0.0255: the scale of trained weights.
VERBATIM_HD uint16_t RandomWeight(uint32_t word) {
  const int32_t sum = static_cast<int16_t>(static_cast<uint16_t>(word)) +
                      static_cast<int16_t>(static_cast<uint16_t>(word >> 16)) + 1;
  return Bf16FromFloat(static_cast<float>(sum) * 0x1p-20f);
}

// Values begin … begin + count - 1 as bf16 bits. Random words by Random123.
void MakeRandomWeights(const RandomWeights& weights, int64_t begin, int64_t count, uint16_t* out);

}  // namespace verbatim::numerics

// Random weights made where they are used: eight neighbouring values of a row a thread.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/philox.cuh"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 8;  // values of 16 bytes

// grid (blocks), a thread 16 bytes of the rows one after the other, padding included.
__global__ void RandomWeightsKernel(RandomWeightsArgs args) {
  const int64_t vectors = RowPitch(args.cols) / kEach;  // of a row
  const int64_t vector = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = vector / vectors;
  if (row >= args.rows) return;
  const int64_t column = (vector - row * vectors) * kEach;
  const uint64_t first = static_cast<uint64_t>(args.weights.first + row * args.cols + column);
  uint32_t words[4] = {};
  uint32_t packed[4] = {};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint64_t element = first + static_cast<uint64_t>(i);
    if (i == 0 || element % 4 == 0) {
      const uint64_t block = element / 4;
      words[0] = static_cast<uint32_t>(block);
      words[1] = static_cast<uint32_t>(block >> 32);
      words[2] = static_cast<uint32_t>(args.weights.matrix);
      words[3] = static_cast<uint32_t>(args.weights.matrix >> 32);
      Philox(args.weights.seed, words);
    }
    if (column + i >= args.cols) continue;
    const uint32_t word = element % 2 == 0 ? (element % 4 == 0 ? words[0] : words[2])
                                           : (element % 4 == 1 ? words[1] : words[3]);
    packed[i / 2] |= static_cast<uint32_t>(numerics::RandomWeight(word)) << (16 * (i % 2));
  }
  static_cast<uint4*>(args.rows_bf16)[vector] = {packed[0], packed[1], packed[2], packed[3]};
}

}  // namespace

int LaunchRandomWeights(const RandomWeightsArgs& args, Stream stream) {
  const int64_t vectors = args.rows * (RowPitch(args.cols) / kEach);
  return Launch(
      RandomWeightsKernel,
      {dim3(static_cast<unsigned int>((vectors + kThreads - 1) / kThreads)), dim3(kThreads), 0},
      stream, args);
}

}  // namespace verbatim::kernels::cuda

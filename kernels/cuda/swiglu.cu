// SwiGLU, one thread an element.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void SwiGluKernel(const float* gate_up, float* y, int64_t elements, int64_t cols,
                             bool round) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  const float* row = gate_up + i / cols * 2 * cols;
  const float gate = row[i % cols], up = row[cols + i % cols];
  const float value = (gate * numerics::SigmoidF(gate)) * up;
  y[i] = round ? numerics::RoundToBf16(value) : value;
}

}  // namespace

int LaunchSwiGlu(const SwiGluArgs& args, Stream stream) {
  const int64_t elements = args.tokens * args.cols;
  const int64_t blocks = (elements + kThreads - 1) / kThreads;
  return Launch(SwiGluKernel, {dim3(static_cast<unsigned int>(blocks)), dim3(kThreads), 0}, stream,
                args.gate_up, args.y, elements, args.cols, args.round);
}

}  // namespace verbatim::kernels::cuda

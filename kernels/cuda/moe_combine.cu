// MoeCombine, one thread an element.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// grid (tokens, columns).
__global__ void CombineKernel(MoeCombineArgs args) {
  const int64_t token = blockIdx.x;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (column >= args.cols) return;
  const int64_t slots = args.tokens * args.top_k;
  const int32_t* places = args.place_of + token * args.top_k;
  const float* weights = args.weights + token * args.top_k;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t r = 0; r < args.top_k; ++r) {
    const int64_t place = places[r];
    const bool exists = place >= 0 && place < slots;
    if (!exists && place != -1) AtomicOr(args.fault, kFaultPlace);
    const float d = exists ? args.expert_rows[place * args.cols + column] : 0.0f;
    if (exists) sum = Fma(weights[r], d, sum);
  }
  const int64_t at = token * args.cols + column;
  if (args.shared != nullptr) {
    const float gate =
        args.shared_gate != nullptr ? numerics::SigmoidF(args.shared_gate[token]) : 1.0f;
    sum = Fma(gate, args.shared[at], sum);
  }
  sum = args.residual[at] + sum;
  args.y[at] = args.round ? numerics::RoundToBf16(sum) : sum;
}

}  // namespace

int LaunchMoeCombine(const MoeCombineArgs& args, Stream stream) {
  return Launch(CombineKernel,
                {dim3(static_cast<unsigned int>(args.tokens),
                      static_cast<unsigned int>((args.cols + kThreads - 1) / kThreads)),
                 dim3(kThreads), 0},
                stream, args);
}

}  // namespace verbatim::kernels::cuda

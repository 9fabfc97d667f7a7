// The sum of parts by the reduction tree, one thread an element.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/reduction_tree.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 6;
static_assert(kMaxTreeParts == 1 << kDepth);

struct Add {
  __device__ float operator()(float left, float right) const { return left + right; }
};

__global__ void TreeSumKernel(TreeSumArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= args.count) return;
  numerics::TreeStream<float, kDepth> stream(args.num_parts);
  for (int p = 0; p < args.num_parts; ++p) stream.Push(args.parts[p][i], Add());
  float value = stream.Root();
  if (args.residual != nullptr) value = args.residual[i] + value;
  args.y[i] = args.round ? numerics::RoundToBf16(value) : value;
}

}  // namespace

int LaunchTreeSum(const TreeSumArgs& args, Stream stream) {
  const int64_t blocks = (args.count + kThreads - 1) / kThreads;
  return Launch(TreeSumKernel, {dim3(static_cast<unsigned int>(blocks)), dim3(kThreads), 0}, stream,
                args);
}

}  // namespace verbatim::kernels::cuda

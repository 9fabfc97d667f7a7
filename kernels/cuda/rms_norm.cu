// RMSNorm: a team of 1, 2, 4 or 8 warps a group, each warp a node of the reduction tree.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/tree.cuh"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxChunksDepth = 24;  // of a node: far above any row length

// A warp's lanes of the sums of squares below a node.
__device__ float NodeSumOfSquares(const float* x, int64_t cols, TreeNode node, int lane) {
  numerics::TreeStream<float, kMaxChunksDepth> stream(node.count);
  for (int64_t chunk = node.first; chunk < node.first + node.count; ++chunk) {
    float sum = 0.0f;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int64_t i = chunk * numerics::kChunkLength + step * 32 + lane;
      if (i < cols) sum = Fma(x[i], x[i], sum);
    }
    stream.Push(sum, [](float left, float right) { return left + right; });
  }
  return stream.Root();
}

// Teams of 2^depth warps; block b has groups b · teams … of all rows together.
__global__ void RmsNormKernel(const float* x, int64_t x_stride, float* y, int64_t y_stride,
                              const float* weight, int64_t rows, int64_t groups, int64_t cols,
                              float eps, bool round, int depth) {
  VERBATIM_SHARED_MEMORY(bytes);
  float* partials = reinterpret_cast<float*>(bytes);  // [kWarps][32]
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int team_warps = 1 << depth;
  const int member = warp % team_warps;
  const int64_t group =
      static_cast<int64_t>(blockIdx.x) * (kWarps / team_warps) + warp / team_warps;
  const bool exists = group < rows * groups;
  const int64_t row = exists ? group / groups : 0;
  const int64_t column = exists ? group % groups * cols : 0;
  const float* in = x + row * x_stride + column;
  if (exists) {
    const TreeNode node = NodeAt(member, depth, numerics::ChunkCount(cols));
    partials[warp * 32 + lane] = NodeSumOfSquares(in, cols, node, lane);
  }
  SyncThreads();
  if (!exists) return;
  float* team = partials + (warp - member) * 32;
  // Every warp joins the team's nodes for itself.
  float lanes[kWarps];
#pragma unroll
  for (int i = 0; i < kWarps; ++i) lanes[i] = i < team_warps ? team[i * 32 + lane] : 0.0f;
#pragma unroll
  for (int width = kWarps; width > 1; width /= 2) {
    if (width > team_warps) continue;
#pragma unroll
    for (int i = 0; i < width / 2; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
  }
  const float mean = FoldLanes(lanes[0]) / static_cast<float>(cols);
  const float s = numerics::RsqrtF(mean + eps);
  float* out = y + row * y_stride + column;
  for (int64_t i = member * 32 + lane; i < cols; i += team_warps * 32) {
    const float value = (in[i] * s) * weight[i];
    out[i] = round ? numerics::RoundToBf16(value) : value;
  }
}

}  // namespace

int LaunchRmsNorm(const RmsNormArgs& args, Stream stream) {
  const int depth = DepthFor(kWarps, numerics::ChunkCount(args.cols));
  const int64_t teams = kWarps >> depth;
  const int64_t blocks = (args.rows * args.groups + teams - 1) / teams;
  return Launch(
      RmsNormKernel,
      {dim3(static_cast<unsigned int>(blocks)), dim3(kWarps * 32), kWarps * 32 * sizeof(float)},
      stream, args.x, args.x_stride, args.y, args.y_stride, args.weight, args.rows, args.groups,
      args.cols, args.eps, args.round, depth);
}

}  // namespace verbatim::kernels::cuda

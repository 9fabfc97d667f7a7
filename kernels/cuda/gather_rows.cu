// Row selection, one block a row.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void GatherRowsKernel(const float* x, int64_t rows, int64_t cols, const int32_t* index,
                                 float* y, uint32_t* fault) {
  const int64_t source = index[blockIdx.x];
  const bool exists = source >= 0 && source < rows;
  if (!exists && threadIdx.x == 0) AtomicOr(fault, kFaultRowIndex);
  float* out = y + static_cast<int64_t>(blockIdx.x) * cols;
  for (int64_t c = threadIdx.x; c < cols; c += kThreads) {
    out[c] = exists ? x[source * cols + c] : 0.0f;
  }
}

}  // namespace

int LaunchGatherRows(const GatherRowsArgs& args, Stream stream) {
  return Launch(GatherRowsKernel,
                {dim3(static_cast<unsigned int>(args.num_rows)), dim3(kThreads), 0}, stream, args.x,
                args.rows, args.cols, args.index, args.y, args.fault);
}

}  // namespace verbatim::kernels::cuda

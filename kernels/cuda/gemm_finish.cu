// What a library's matrix product leaves to be done: bias and rounding.
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// grid (columns, tokens).
__global__ void __launch_bounds__(kThreads) GemmFinishKernel(int64_t rows, Epilogue epilogue) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t token = blockIdx.y;
  if (row < rows) epilogue.Store(token, row, epilogue.y[token * epilogue.y_stride + row]);
}

}  // namespace

int LaunchGemmFinish(const GemmFinishArgs& args, Stream stream) {
  constexpr int64_t kMostTokens = 65535;  // of a grid
  for (int64_t first = 0; first < args.tokens; first += kMostTokens) {
    const int64_t tokens = args.tokens - first < kMostTokens ? args.tokens - first : kMostTokens;
    const Epilogue epilogue{args.y + first * args.y_stride, args.y_stride, args.bias, nullptr,
                            args.round};
    const int error = Launch(GemmFinishKernel,
                             {dim3(static_cast<unsigned int>((args.rows + kThreads - 1) / kThreads),
                                   static_cast<unsigned int>(tokens)),
                              dim3(kThreads), 0},
                             stream, args.rows, epilogue);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace verbatim::kernels::cuda

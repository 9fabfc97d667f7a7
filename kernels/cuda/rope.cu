// Rotary position embedding in place, one thread a pair.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void RopeKernel(float* qkv, int64_t row_stride, int64_t heads, int64_t half,
                           bool interleaved, const int32_t* positions, const float* cos_table,
                           const float* sin_table, uint32_t* fault) {
  const int64_t row = blockIdx.y;
  const int64_t position = positions[row];
  if (position < 0) {
    if (threadIdx.x == 0) AtomicOr(fault, kFaultPosition);
    return;
  }
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pair >= heads * half) return;
  const int64_t i = pair % half;
  float* head = qkv + row * row_stride + pair / half * 2 * half;
  float* first = head + (interleaved ? 2 * i : i);
  float* second = head + (interleaved ? 2 * i + 1 : i + half);
  const float c = cos_table[position * half + i], s = sin_table[position * half + i];
  const float a = *first, b = *second;
  *first = Fma(a, c, -(b * s));
  *second = Fma(b, c, a * s);
}

}  // namespace

int LaunchRope(const RopeArgs& args, Stream stream) {
  const int64_t half = args.head_dim / 2;
  const int64_t blocks = (args.heads * half + kThreads - 1) / kThreads;
  constexpr int64_t kMaxRows = 65535;  // of a grid
  for (int64_t first = 0; first < args.tokens; first += kMaxRows) {
    const int64_t rows = args.tokens - first < kMaxRows ? args.tokens - first : kMaxRows;
    const int error = Launch(
        RopeKernel,
        {dim3(static_cast<unsigned int>(blocks), static_cast<unsigned int>(rows)), dim3(kThreads),
         0},
        stream, args.qkv + first * args.row_stride, args.row_stride, args.heads, half,
        args.interleaved, args.positions + first, args.cos_table, args.sin_table, args.fault);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace verbatim::kernels::cuda

// PORTABLE matrix products: the tiles of gemm_portable.cuh over a whole matrix.
#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_portable.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

using namespace gemm_portable;

// What a block of tokens reads and writes.
struct TokenRows {
  const float* x;
  int64_t x_stride;
  int64_t first_token;
  __device__ __forceinline__ const float* operator()(int t) const {
    return x + (first_token + t) * x_stride;
  }
};
struct TokenStore {
  const Epilogue& epilogue;
  int64_t first_token, first_row;
  __device__ __forceinline__ void operator()(int t, int64_t row, float sum) const {
    epilogue.Store(first_token + t, first_row + row, sum);
  }
};

// grid (row tiles, token tiles); 2^depth warps.
template <DType kFormat, int kTokens>
__global__ void __launch_bounds__(kWarps<kFormat> * 32)
    FewTokensKernel(PackedPart part, int64_t tokens, const float* x, int64_t x_stride,
                    Epilogue epilogue, int depth) {
  VERBATIM_SHARED_MEMORY(bytes);
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTokens;
  const int64_t count = tokens - first_token < kTokens ? tokens - first_token : kTokens;
  FewTokens<kFormat, kTokens>(part, blockIdx.x, count, depth, bytes,
                              TokenRows{x, x_stride, first_token},
                              TokenStore{epilogue, first_token, part.first_row});
}

// grid (output tiles, token tiles).
template <DType kFormat>
__global__ void __launch_bounds__(kTileThreads)
    ManyTokensKernel(PackedPart part, int64_t tokens, const float* x, int64_t x_stride,
                     Epilogue epilogue) {
  VERBATIM_SHARED_MEMORY(bytes);
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens;
  const int64_t count = tokens - first_token < kTileTokens ? tokens - first_token : kTileTokens;
  ManyTokens<kFormat>(part, blockIdx.x, count, bytes, TokenRows{x, x_stride, first_token},
                      TokenStore{epilogue, first_token, part.first_row});
}

template <DType kFormat, int kTokens>
int LaunchFewTokens(const GemmArgs& args, const Epilogue& epilogue, Stream stream) {
  const int depth = DepthFor(kWarps<kFormat>, numerics::ChunkCount(args.part.cols));
  const LaunchShape shape{dim3(static_cast<unsigned int>(args.part.tiles()),
                               static_cast<unsigned int>((args.tokens + kTokens - 1) / kTokens)),
                          dim3(32u << depth), FewTokensBytes<kFormat, kTokens>(depth)};
  return Launch(FewTokensKernel<kFormat, kTokens>, shape, stream, args.part, args.tokens, args.x,
                args.x_stride, epilogue, depth);
}

template <DType kFormat, int kTokens>
SharedNeed FewTokensNeed() {
  return {"portable product of few tokens", FunctionOf(FewTokensKernel<kFormat, kTokens>),
          kWarps<kFormat> * static_cast<size_t>(kOwnBytes<kFormat, kTokens>)};
}

}  // namespace

SharedNeeds GemmPortableNeeds() {
  SharedNeeds needs;
  for (int format = 0; format <= static_cast<int>(DType::kQ6_K); ++format) {
    ForFormat(static_cast<DType>(format), [&]<DType kFormat>() {
      needs.insert(needs.end(), {FewTokensNeed<kFormat, 1>(), FewTokensNeed<kFormat, 2>(),
                                 FewTokensNeed<kFormat, 4>(), FewTokensNeed<kFormat, 8>()});
    });
  }
  return needs;
}

int LaunchGemmPortable(const GemmArgs& args, Stream stream) {
  const Epilogue epilogue{args.y, args.y_stride, args.bias, args.residual, args.round};
  // Tiles of many tokens would leave most multiprocessors idle where outputs are few (routers).
  const int64_t tiles = (args.part.rows + kTileOutputs - 1) / kTileOutputs *
                        ((args.tokens + kTileTokens - 1) / kTileTokens);
  const bool few = args.tokens <= kFewTokens || 4 * tiles <= args.multiprocessors;
  return ForFormat(args.part.format, [&]<DType kFormat>() {
    if (args.tokens == 1) return LaunchFewTokens<kFormat, 1>(args, epilogue, stream);
    if (args.tokens == 2) return LaunchFewTokens<kFormat, 2>(args, epilogue, stream);
    if (args.tokens <= 4) return LaunchFewTokens<kFormat, 4>(args, epilogue, stream);
    if (few) return LaunchFewTokens<kFormat, 8>(args, epilogue, stream);
    const LaunchShape shape{
        dim3(static_cast<unsigned int>((args.part.rows + kTileOutputs - 1) / kTileOutputs),
             static_cast<unsigned int>((args.tokens + kTileTokens - 1) / kTileTokens)),
        dim3(kTileThreads), kManyTokensBytes};
    return Launch(ManyTokensKernel<kFormat>, shape, stream, args.part, args.tokens, args.x,
                  args.x_stride, epilogue);
  });
}

}  // namespace verbatim::kernels::cuda

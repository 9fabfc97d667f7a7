// Embedding: one block a token decodes its row of the packed table.
#include "kernels/cuda/codecs.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr unsigned int kThreads = 64;

// Writes the rows of tokens that this part holds; a thread decodes whole groups.
template <DType kFormat>
__global__ void EmbeddingKernel(PackedPart part, bool first_part, int64_t vocab,
                                const int32_t* tokens, float scale, float* y, bool round,
                                uint32_t* fault) {
  using C = Codec<kFormat>;
  const int64_t token = tokens[blockIdx.x];
  float* out = y + static_cast<int64_t>(blockIdx.x) * part.cols;
  if (token < 0 || token >= vocab) {
    if (!first_part) return;
    if (threadIdx.x == 0) AtomicOr(fault, kFaultToken);
    for (int64_t c = threadIdx.x; c < part.cols; c += kThreads) out[c] = codec::FromBits(~0u);
    return;
  }
  const int64_t row = token - part.first_row;
  if (row < 0 || row >= part.rows) return;
  for (int64_t group = threadIdx.x; group < part.groups(); group += kThreads) {
    const typename C::Group g =
        C::Load(part, row / kTileRows, group, static_cast<int>(row % kTileRows));
    const int64_t first = group * kGroupColumns;
#pragma unroll
    for (int j = 0; j < kGroupColumns; ++j) {
      if (first + j >= part.cols) continue;
      const float stored = C::Value(g, j);
      const float value = scale == 1.0f ? stored : scale * stored;
      out[first + j] = round ? numerics::RoundToBf16(value) : value;
    }
  }
}

}  // namespace

int LaunchEmbedding(const EmbeddingArgs& args, Stream stream) {
  for (int i = 0; i < args.num_parts; ++i) {
    const PackedPart& part = args.parts[i];
    const int error = ForFormat(part.format, [&]<DType kFormat>() {
      return Launch(EmbeddingKernel<kFormat>,
                    {dim3(static_cast<unsigned int>(args.num_tokens)), dim3(kThreads), 0}, stream,
                    part, i == 0, args.vocab, args.tokens, args.scale, args.y, args.round,
                    args.fault);
    });
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace verbatim::kernels::cuda

// Writes K and V of the batch's rows into their pages, one block a row.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ void Convert(float x, float* out) { *out = x; }
__device__ __forceinline__ void Convert(float x, uint16_t* out) {
  *out = numerics::Bf16FromFloat(x);
}

template <class T>
__global__ void KvWriteKernel(KvLayout layout, int64_t layer, const float* k, const float* v,
                              int64_t row_stride, const KvRow* rows) {
  const KvRow row = rows[blockIdx.x];
  if (row.page < 0) return;
  const int64_t segment = layout.segment_elements();
  const int64_t head_dim = layout.head_dim;
  for (int64_t i = threadIdx.x; i < layout.num_kv_heads * head_dim; i += kThreads) {
    const int64_t head = i / head_dim, d = i % head_dim;
    T* page = static_cast<T*>(layout.data) + layout.HeadOffset(layer, row.page, head);
    T* key = page + (d / segment * layout.page_tokens + row.offset) * segment + d % segment;
    T* value = page + layout.v_offset() + row.offset * layout.v_stride() + d;
    Convert(k[row.row * row_stride + i], key);
    Convert(v[row.row * row_stride + i], value);
  }
}

}  // namespace

int LaunchKvWrite(const KvWriteArgs& args, Stream stream) {
  const LaunchShape shape{dim3(static_cast<unsigned int>(args.num_rows)), dim3(kThreads), 0};
  if (args.layout.bf16) {
    return Launch(KvWriteKernel<uint16_t>, shape, stream, args.layout, args.layer, args.k, args.v,
                  args.row_stride, args.rows);
  }
  return Launch(KvWriteKernel<float>, shape, stream, args.layout, args.layer, args.k, args.v,
                args.row_stride, args.rows);
}

}  // namespace verbatim::kernels::cuda

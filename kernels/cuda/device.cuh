// What kernels are written with: the one header of every kernel file, for nvcc and for a host
// compiler.
//
// Kernels use these names instead of instructions, so that the same source also runs without a GPU:
// compiled by a host C++ compiler it takes the names from simt/device.h, whose functions have
// reference semantics (tests/simt). Rules that keep this possible: no inline assembly, cooperative
// groups or static shared memory in kernels; warp operations by whole warps with the full mask;
// block sizes that are multiples of 32; no return before a barrier; every FMA written out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/stream.h"

#if !defined(__CUDACC__)

#include "simt/device.h"

#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace verbatim::kernels::cuda {

inline constexpr uint32_t kFullMask = 0xffffffffu;
inline constexpr int kWarpSize = 32;

// The block's dynamic shared memory as bytes, 128-byte aligned; uninitialised.
#define VERBATIM_SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

__device__ __forceinline__ void SyncThreads() { __syncthreads(); }
__device__ __forceinline__ void SyncWarp() { __syncwarp(); }

template <class T>
__device__ __forceinline__ T Shuffle(T value, int source) {
  return __shfl_sync(kFullMask, value, source);
}
template <class T>
__device__ __forceinline__ T ShuffleXor(T value, int lane_mask) {
  return __shfl_xor_sync(kFullMask, value, lane_mask);
}
// Lanes without a source keep their own value.
template <class T>
__device__ __forceinline__ T ShuffleDown(T value, int delta) {
  return __shfl_down_sync(kFullMask, value, delta);
}
template <class T>
__device__ __forceinline__ T ShuffleUp(T value, int delta) {
  return __shfl_up_sync(kFullMask, value, delta);
}
__device__ __forceinline__ uint32_t Ballot(bool predicate) {
  return __ballot_sync(kFullMask, predicate);
}
__device__ __forceinline__ bool AnyLane(bool predicate) {
  return __any_sync(kFullMask, predicate) != 0;
}
__device__ __forceinline__ bool AllLanes(bool predicate) {
  return __all_sync(kFullMask, predicate) != 0;
}

// Integers only: a sum of floats would depend on its order.
__device__ __forceinline__ uint32_t AtomicAdd(uint32_t* address, uint32_t value) {
  return atomicAdd(address, value);
}
__device__ __forceinline__ uint64_t AtomicAdd(uint64_t* address, uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(address), value);
}
__device__ __forceinline__ uint32_t AtomicOr(uint32_t* address, uint32_t value) {
  return atomicOr(address, value);
}
__device__ __forceinline__ uint64_t AtomicMax(uint64_t* address, uint64_t value) {
  return atomicMax(reinterpret_cast<unsigned long long*>(address), value);
}
__device__ __forceinline__ uint64_t AtomicMin(uint64_t* address, uint64_t value) {
  return atomicMin(reinterpret_cast<unsigned long long*>(address), value);
}

__device__ __forceinline__ float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// The upper half of the product.
__device__ __forceinline__ uint64_t MultiplyHigh(uint64_t a, uint64_t b) {
  return __umul64hi(a, b);
}
__device__ __forceinline__ uint32_t MultiplyHigh(uint32_t a, uint32_t b) { return __umulhi(a, b); }

__device__ __forceinline__ int PopCount(uint32_t bits) { return __popc(bits); }

// Exact, for every value that is not NaN.
__device__ __forceinline__ float WidenHalf(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

// A load of memory that no kernel writes meanwhile and that is not read again soon (weights).
__device__ __forceinline__ uint4 LoadOnce(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}
__device__ __forceinline__ uint2 LoadOnce(const uint2* address) { return __ldg(address); }
__device__ __forceinline__ uint32_t LoadOnce(const uint32_t* address) { return __ldg(address); }
__device__ __forceinline__ uint16_t LoadOnce(const uint16_t* address) { return __ldg(address); }

// A load of memory that no kernel writes meanwhile; its neighbours may be read next.
__device__ __forceinline__ uint4 LoadReadOnly(const uint4* address) { return __ldg(address); }

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
// Starts a copy of 16 bytes to shared memory, the last 16 − source_bytes of them zero; both
// addresses are multiples of 16. Visible to this thread after the wait that covers it, to others
// after a barrier that follows.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, int source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() { asm volatile("cp.async.commit_group;"); }
// Waits until at most kPending of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 × 8 matrices of 16-bit elements: lane 8 i + r gives the address of row r of matrix i;
// register i of lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i.
__device__ __forceinline__ void LoadMatrixX4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// The same with every matrix transposed: register i of lane l gets column l / 4 of rows 2 (l % 4)
// and 2 (l % 4) + 1 of matrix i.
__device__ __forceinline__ void LoadMatrixX4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// Two values rounded to bf16, nearest even; the bits of a NaN are the device's.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// d += a · b for a [16, 16] row-major, b [16, 8], d [16, 8], bf16 with fp32 accumulators, in the
// fragment layout of mma.sync.m16n8k16.
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A kernel as the runtime knows it.
template <class... P>
const void* FunctionOf(void (*kernel)(P...)) {
  return reinterpret_cast<const void*>(kernel);
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned int cluster = 1;  // blocks along x that form one; more than 1 on Hopper
};

// Puts the kernel on the stream. 0, or a cudaError_t of the launch itself: more shared memory than
// AllowSharedMemory (shared_memory.h) asked for is one.
template <class... P, class... A>
int Launch(void (*kernel)(P...), const LaunchShape& shape, Stream stream, A&&... arguments) {
  if (shape.cluster > 1) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
  }
  kernel<<<shape.grid, shape.block, shape.shared_bytes, stream>>>(static_cast<P>(arguments)...);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace verbatim::kernels::cuda

#endif

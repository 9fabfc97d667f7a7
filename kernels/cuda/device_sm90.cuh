// What Hopper (compute capability 9.0) adds to device.cuh: barriers that count bytes, copies of
// boxes of a matrix, products of four warps.
//
// Code for sm_90a alone: kernels use these names within VERBATIM_SM90A, which is not defined when
// they are compiled for another target. A host compiler takes them from simt/device_sm90.h. What
// each does is in the PTX ISA under mbarrier, cp.async.bulk.tensor and wgmma.
#pragma once

#include "kernels/cuda/device.cuh"

#if !defined(__CUDACC__)

#include "simt/device_sm90.h"

#else

#include <cuda.h>

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define VERBATIM_SM90A 1
#endif

namespace verbatim::kernels::cuda {

// A row-major matrix of 16-bit elements, to be copied in boxes of 64 columns.
using TensorMap = CUtensorMap;

// Host: the map of a matrix at `base`, with boxes of `box_rows` <= 256 rows; base and pitch_bytes
// are multiples of 16. 0, or a cudaError_t.
inline int MakeTensorMap(const void* base, int64_t cols, int64_t rows, int64_t pitch_bytes,
                         int box_rows, TensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<Encode>(function)
               : nullptr;
  }();
  if (encode == nullptr) return static_cast<int>(cudaErrorNotSupported);
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(pitch_bytes)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t step[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(base), size, pitch, box,
             step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return static_cast<int>(result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue);
}

// A barrier in shared memory whose phase ends when `arrivals` have come and all bytes that were
// expected are there. FenceAsyncProxy, then a barrier of the block, come before its use.
__device__ __forceinline__ void InitBarrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ __forceinline__ void ArriveAndExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ __forceinline__ bool PhaseIsOver(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}
// Waits for the end of the phase of this parity; phases count from 0, and the one before the first
// is over. False when it has not ended after tens of seconds: it never will.
__device__ __forceinline__ bool WaitForPhase(uint64_t* barrier, uint32_t parity) {
  constexpr int64_t kPatienceCycles = int64_t{1} << 36;
  const uint32_t address = SharedAddress(barrier);
  if (PhaseIsOver(address, parity)) return true;
  const int64_t start = clock64();
  while (!PhaseIsOver(address, parity)) {
    if (clock64() - start > kPatienceCycles) return false;
  }
  return true;
}

__device__ __forceinline__ void PrefetchMap(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// The map at a multiple of 128 in device memory, which was copied there before the kernel: for
// boxes that this thread starts from now on. Device memory is not where such copies look for maps,
// so that each block must have what was written there made known to them.
__device__ __forceinline__ const TensorMap& AcquireMap(const void* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
  return *static_cast<const TensorMap*>(map);
}
// Starts the copy of the map's box whose first element is (row, column) to `shared`, a multiple of
// 1024: box row r is 128 bytes at 128 r, its 16-byte segment s at s ^ (r % 8); elements that do not
// exist are zero. The box's bytes, all of them, count for `barrier`. The map is a __grid_constant__
// parameter of the kernel, or was acquired.
__device__ __forceinline__ void LoadBox(void* shared, const TensorMap& map, int column, int row,
                                        uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(SharedAddress(barrier)), "r"(column), "r"(row)
      : "memory");
}

// The same, in every block of the cluster whose bit is set in `ranks`: to the same place, for the
// same barrier.
__device__ __forceinline__ void LoadBoxForAll(void* shared, const TensorMap& map, int column,
                                              int row, uint64_t* barrier, uint32_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(SharedAddress(barrier)), "r"(column), "r"(row),
      "h"(static_cast<uint16_t>(ranks))
      : "memory");
}

// This block's place in its cluster.
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Waits for every thread of the cluster.
__device__ __forceinline__ void SyncCluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
// Arrives at the barrier that lies at the same place in another block of the cluster, or this one.
__device__ __forceinline__ void ArriveAtRank(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(rank)
      : "memory");
}

// A store that the host sees even when the kernel ends in a trap.
__device__ __forceinline__ void StoreForHost(uint32_t* address, uint32_t value) {
  *reinterpret_cast<volatile uint32_t*>(address) = value;
  __threadfence_system();
}
__device__ __forceinline__ void Trap() { __trap(); }

// Changes how many registers the warpgroup's threads own, by all of its warps.
template <int kRegisters>
__device__ __forceinline__ void MoreRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void FewerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Products of a warpgroup, four neighbouring warps the first of which is a multiple of 4. They are
// asynchronous: between the first product and WgmmaWaitForAll nothing else may touch accumulators,
// and operands stay as they are until a wait covers the commit after the product.
//
// Keeps the compiler from moving uses of the accumulators across.
template <int kCount>
__device__ __forceinline__ void HoldInPlace(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// Orders earlier uses of accumulators before products that follow.
template <int kCount>
__device__ __forceinline__ void WgmmaFence(float (&d)[kCount]) {
  HoldInPlace(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ __forceinline__ void WgmmaWaitForAll(float (&d)[kCount]) {
  WgmmaWait<0>();
  HoldInPlace(d);
}

// d [64, kColumns] += a [64, 16] · b [kColumns, 16]ᵀ, bf16 with fp32 accumulators; operands are
// SharedMatrix descriptors. Warp w of the warpgroup has rows from 16 w on; register 4 j + 2 h + e
// of lane l is row l / 4 + 8 h, column 8 j + 2 (l % 4) + e.
template <int kColumns>
__device__ void WgmmaBf16(float (&d)[kColumns / 2], uint64_t a, uint64_t b);

#define VERBATIM_EIGHT(i)                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
template <>
__device__ __forceinline__ void WgmmaBf16<128>(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, add, 1, 1, 0, 0;\n"
      "}"
      : VERBATIM_EIGHT(0), VERBATIM_EIGHT(8), VERBATIM_EIGHT(16), VERBATIM_EIGHT(24),
        VERBATIM_EIGHT(32), VERBATIM_EIGHT(40), VERBATIM_EIGHT(48), VERBATIM_EIGHT(56)
      : "l"(a), "l"(b));
}
template <>
__device__ __forceinline__ void WgmmaBf16<192>(float (&d)[96], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, "
      "%72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, "
      "%88, %89, %90, %91, %92, %93, %94, %95}, "
      "%96, %97, add, 1, 1, 0, 0;\n"
      "}"
      : VERBATIM_EIGHT(0), VERBATIM_EIGHT(8), VERBATIM_EIGHT(16), VERBATIM_EIGHT(24),
        VERBATIM_EIGHT(32), VERBATIM_EIGHT(40), VERBATIM_EIGHT(48), VERBATIM_EIGHT(56),
        VERBATIM_EIGHT(64), VERBATIM_EIGHT(72), VERBATIM_EIGHT(80), VERBATIM_EIGHT(88)
      : "l"(a), "l"(b));
}
#undef VERBATIM_EIGHT

}  // namespace verbatim::kernels::cuda

#endif

namespace verbatim::kernels::cuda {

// The descriptor of a matrix of rows of 16 columns, of boxes that LoadBox put at `shared`, a
// multiple of 1024, from column `step` * 16 of the box on: 128-byte swizzle, eight rows every 1024
// bytes. Rows may go on into the next box if it follows. (PTX ISA, wgmma: bits 0-13 start address,
// 16-29 leading dimension, unused by this layout, 32-45 stride, 62-63 swizzle; in units of 16
// bytes.)
__device__ __forceinline__ uint64_t SharedMatrix(const void* shared, int step) {
  constexpr uint64_t kLayout = uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16;
  const uint32_t start = SharedAddress(shared) + static_cast<uint32_t>(step) * 32;
  return kLayout | (start & 0x3ffff) >> 4;
}

}  // namespace verbatim::kernels::cuda

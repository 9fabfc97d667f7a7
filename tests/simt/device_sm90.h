// The device side of kernels/cuda/device_sm90.cuh for the emulator: the same names, reference
// semantics.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "simt/async.h"
#include "simt/warpgroup.h"

#define __grid_constant__
#define VERBATIM_SM90A 1

namespace verbatim::kernels::cuda {

#define VERBATIM_HERE const simt::Place& where = simt::Place::Here()

using TensorMap = simt::BoxedMatrix;

inline int MakeTensorMap(const void* base, int64_t cols, int64_t rows, int64_t pitch_bytes,
                         int box_rows, TensorMap* map) {
  constexpr int kInvalidValue = 1;
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0 || pitch_bytes % 16 != 0 || cols < 1 ||
      rows < 1 || box_rows < 1 || box_rows > 256) {
    return kInvalidValue;
  }
  *map = {base, cols, rows, pitch_bytes, static_cast<uint32_t>(box_rows)};
  return 0;
}

inline uint32_t SharedAddress(const void* shared) { return simt::SharedAddressOf(shared); }

inline void InitBarrier(uint64_t* barrier, uint32_t arrivals, VERBATIM_HERE) {
  simt::InitBarrier(barrier, arrivals, where);
}
inline void FenceAsyncProxy() { simt::FenceAsyncProxy(); }
inline void Arrive(uint64_t* barrier, VERBATIM_HERE) { simt::Arrive(barrier, 0, where); }
inline void ArriveAndExpect(uint64_t* barrier, uint32_t bytes, VERBATIM_HERE) {
  simt::Arrive(barrier, bytes, where);
}
// Waits without end here: the emulator knows when nothing will come.
inline bool WaitForPhase(uint64_t* barrier, uint32_t parity, VERBATIM_HERE) {
  simt::WaitForPhase(barrier, parity, where);
  return true;
}
inline void PrefetchMap(const TensorMap&) {}
inline const TensorMap& AcquireMap(const void* map, VERBATIM_HERE) {
  if (reinterpret_cast<uintptr_t>(map) % 128 != 0) {
    simt::Fault("a map that is not at a multiple of 128", nullptr, where);
  }
  return *static_cast<const TensorMap*>(map);
}
inline void LoadBox(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier,
                    VERBATIM_HERE) {
  simt::CopyBox(shared, map, column, row, barrier, 1u << simt::ClusterRank(), where);
}
inline void LoadBoxForAll(void* shared, const TensorMap& map, int column, int row,
                          uint64_t* barrier, uint32_t ranks, VERBATIM_HERE) {
  simt::CopyBox(shared, map, column, row, barrier, ranks, where);
}

inline uint32_t ClusterRank() { return simt::ClusterRank(); }
inline void SyncCluster(VERBATIM_HERE) { simt::SyncCluster(where); }
inline void ArriveAtRank(uint64_t* barrier, uint32_t rank, VERBATIM_HERE) {
  simt::Arrive(simt::AtRank(barrier, rank, where), 0, where);
}

inline void StoreForHost(uint32_t* address, uint32_t value) { *address = value; }
[[noreturn]] inline void Trap(VERBATIM_HERE) { simt::Fault("a trap", nullptr, where); }

template <int kRegisters>
void MoreRegisters() {}
template <int kRegisters>
void FewerRegisters() {}

template <int kCount>
void WgmmaFence(float (&)[kCount], VERBATIM_HERE) {
  simt::ProductFence(where);
}
inline void WgmmaCommit(VERBATIM_HERE) { simt::ProductCommit(where); }
template <int kPending>
void WgmmaWait(VERBATIM_HERE) {
  simt::ProductWait(kPending, where);
}
template <int kCount>
void WgmmaWaitForAll(float (&)[kCount], VERBATIM_HERE) {
  simt::ProductWait(0, where);
}
// Products are exact and added in ascending k, each sum rounded to fp32, as by MmaBf16, unless a
// test wants another device.
template <int kColumns>
void WgmmaBf16(float (&d)[kColumns / 2], uint64_t a, uint64_t b, VERBATIM_HERE) {
  simt::ProductAsync(
      d, kColumns, a, b,
      [](float sum, const uint16_t* a, const uint16_t* b) {
        const int flip = simt::ProductsDescend() ? 15 : 0;
        for (int k = 0; k < 16; ++k) {
          sum += emulated::WidenBf16(a[k ^ flip]) * emulated::WidenBf16(b[k ^ flip]);
        }
        return sum;
      },
      where);
}

#undef VERBATIM_HERE

}  // namespace verbatim::kernels::cuda

// The device side of kernels/cuda/device.cuh for the emulator: the same names, reference semantics.
//
// Under nvcc device.cuh defines these names by instructions of the GPU. Here every operation that
// meets other threads carries the place it was called from, so that a divergence names it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels/cuda/stream.h"
#include "kernels/numerics/bf16.h"
#include "simt/emulator.h"
#include "simt/recording.h"

using dim3 = simt::Dim3;
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::simt::ThreadIndex())
#define blockIdx (::simt::BlockIndex())
#define blockDim (::simt::BlockSize())
#define gridDim (::simt::GridSize())

namespace verbatim::kernels::cuda {

inline constexpr uint32_t kFullMask = simt::kFullMask;
inline constexpr int kWarpSize = simt::kWarpSize;
#define VERBATIM_HERE const simt::Place& where = simt::Place::Here()

#define VERBATIM_SHARED_MEMORY(name) \
  unsigned char* const name = reinterpret_cast<unsigned char*>(::simt::SharedMemory())

inline void SyncThreads(VERBATIM_HERE) { simt::SyncThreads(where); }

inline void SyncWarp(VERBATIM_HERE) {
  simt::WarpOperation(
      kFullMask, nullptr, nullptr, [](simt::WarpLanes&) {}, true, where);
}

namespace emulated {
template <class T>
struct ShuffleArgument {
  T value;
  int source;  // lane read; taken modulo 32
};
template <class T>
T ShuffleFrom(T value, int source, uint32_t mask, const simt::Place& where) {
  const ShuffleArgument<T> in{value, source};
  T out;
  simt::WarpOperation(
      mask, &in, &out,
      [](simt::WarpLanes& lanes) {
        for (int lane = 0; lane < kWarpSize; ++lane) {
          const auto* own = static_cast<const ShuffleArgument<T>*>(lanes.in[lane]);
          const auto* from = static_cast<const ShuffleArgument<T>*>(lanes.in[own->source & 31]);
          *static_cast<T*>(lanes.out[lane]) = from->value;
        }
      },
      false, where);
  return out;
}
inline int Lane() {
  const dim3& t = threadIdx;
  const dim3& b = blockDim;
  return static_cast<int>((t.x + b.x * (t.y + b.y * t.z)) % kWarpSize);
}
}  // namespace emulated

template <class T>
T Shuffle(T value, int source, uint32_t mask = kFullMask, VERBATIM_HERE) {
  return emulated::ShuffleFrom(value, source, mask, where);
}
template <class T>
T ShuffleXor(T value, int lane_mask, uint32_t mask = kFullMask, VERBATIM_HERE) {
  return emulated::ShuffleFrom(value, emulated::Lane() ^ lane_mask, mask, where);
}
// Lanes without a source keep their own value.
template <class T>
T ShuffleDown(T value, int delta, uint32_t mask = kFullMask, VERBATIM_HERE) {
  const int lane = emulated::Lane();
  return emulated::ShuffleFrom(value, lane + delta < kWarpSize ? lane + delta : lane, mask, where);
}
template <class T>
T ShuffleUp(T value, int delta, uint32_t mask = kFullMask, VERBATIM_HERE) {
  const int lane = emulated::Lane();
  return emulated::ShuffleFrom(value, lane >= delta ? lane - delta : lane, mask, where);
}
inline uint32_t Ballot(bool predicate, uint32_t mask = kFullMask, VERBATIM_HERE) {
  uint32_t out = 0;
  simt::WarpOperation(
      mask, &predicate, &out,
      [](simt::WarpLanes& lanes) {
        uint32_t bits = 0;
        for (int lane = 0; lane < kWarpSize; ++lane) {
          bits |= static_cast<uint32_t>(*static_cast<const bool*>(lanes.in[lane])) << lane;
        }
        for (void* out : lanes.out) *static_cast<uint32_t*>(out) = bits;
      },
      false, where);
  return out;
}
inline bool AnyLane(bool predicate, VERBATIM_HERE) {
  return Ballot(predicate, kFullMask, where) != 0;
}
inline bool AllLanes(bool predicate, VERBATIM_HERE) {
  return Ballot(predicate, kFullMask, where) == kFullMask;
}

template <class T>
T AtomicAdd(T* address, T value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T AtomicOr(T* address, T value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <class T>
T AtomicMax(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T AtomicMin(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}

inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline uint64_t MultiplyHigh(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline uint32_t MultiplyHigh(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int PopCount(uint32_t bits) { return __builtin_popcount(bits); }
inline float WidenHalf(uint16_t bits) { return numerics::FloatFromFp16(bits); }
template <class T>
T LoadOnce(const T* address) {
  return *address;
}
inline uint4 LoadReadOnly(const uint4* address) { return *address; }

// Copies 16 bytes, the last 16 − source_bytes of them zero, when a wait covers the copy.
inline void CopyAsync16(void* shared, const void* global, int source_bytes, VERBATIM_HERE) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    simt::Fault("an asynchronous copy whose addresses are not multiples of 16", nullptr, where);
  }
  simt::CopyAsync(shared, global, 16, static_cast<size_t>(source_bytes));
}
inline void CopyAsyncCommit() { simt::CopyAsyncCommit(); }
template <int kPending>
void CopyAsyncWait() {
  simt::CopyAsyncWait(kPending);
}

// Four 8 × 8 matrices of 16-bit elements: lane 8 i + r gives the address of row r of matrix i;
// register i of lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i.
inline void LoadMatrixX4(uint32_t (&r)[4], const void* row, VERBATIM_HERE) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    simt::Fault("a matrix row whose address is not a multiple of 16", nullptr, where);
  }
  simt::WarpOperation(
      kFullMask, row, &r,
      [](simt::WarpLanes& lanes) {
        for (int lane = 0; lane < kWarpSize; ++lane) {
          for (int i = 0; i < 4; ++i) {
            const auto* source = static_cast<const char*>(lanes.in[8 * i + lane / 4]);
            std::memcpy(static_cast<uint32_t*>(lanes.out[lane]) + i, source + 4 * (lane % 4), 4);
          }
        }
      },
      false, where);
}

// The same with every matrix transposed: register i of lane l gets column l / 4 of rows 2 (l % 4)
// and 2 (l % 4) + 1 of matrix i.
inline void LoadMatrixX4Transposed(uint32_t (&r)[4], const void* row, VERBATIM_HERE) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    simt::Fault("a matrix row whose address is not a multiple of 16", nullptr, where);
  }
  simt::WarpOperation(
      kFullMask, row, &r,
      [](simt::WarpLanes& lanes) {
        for (int lane = 0; lane < kWarpSize; ++lane) {
          for (int i = 0; i < 4; ++i) {
            auto* to = reinterpret_cast<char*>(static_cast<uint32_t*>(lanes.out[lane]) + i);
            for (int e = 0; e < 2; ++e) {
              const auto* source = static_cast<const char*>(lanes.in[8 * i + 2 * (lane % 4) + e]);
              std::memcpy(to + 2 * e, source + 2 * (lane / 4), 2);
            }
          }
        }
      },
      false, where);
}

inline uint32_t PackBf16(float low, float high) {
  return numerics::Bf16FromFloat(low) | static_cast<uint32_t>(numerics::Bf16FromFloat(high)) << 16;
}

namespace emulated {
inline float WidenBf16(uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
}  // namespace emulated

// d += a · b for a [16, 16] row-major, b [16, 8], d [16, 8], bf16 with fp32 accumulators, in the
// fragment layout of mma.sync.m16n8k16. Products are exact and added in ascending k, each sum
// rounded to fp32: the hardware's own order inside one instruction is not documented.
inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], VERBATIM_HERE) {
  struct In {
    const uint32_t* a;
    const uint32_t* b;
  };
  const In in{a, b};
  simt::WarpOperation(
      kFullMask, &in, &d,
      [](simt::WarpLanes& lanes) {
        float wide_a[16][16], wide_b[16][8];
        for (int lane = 0; lane < kWarpSize; ++lane) {
          const In* in = static_cast<const In*>(lanes.in[lane]);
          const int group = lane / 4, pair = 2 * (lane % 4);
          for (int i = 0; i < 4; ++i) {
            float* to = &wide_a[group + 8 * (i % 2)][pair + 8 * (i / 2)];
            to[0] = emulated::WidenBf16(in->a[i] & 0xffff);
            to[1] = emulated::WidenBf16(in->a[i] >> 16);
          }
          for (int i = 0; i < 2; ++i) {
            wide_b[pair + 8 * i][group] = emulated::WidenBf16(in->b[i] & 0xffff);
            wide_b[pair + 8 * i + 1][group] = emulated::WidenBf16(in->b[i] >> 16);
          }
        }
        for (int lane = 0; lane < kWarpSize; ++lane) {
          float* d = static_cast<float*>(lanes.out[lane]);
          for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            for (int k = 0; k < 16; ++k) d[i] += wide_a[row][k] * wide_b[k][column];
          }
        }
      },
      false, where);
}

#undef VERBATIM_HERE

// The message of the last failed launch, for the runtime.
void SetLaunchFault(const std::string& message);

// A kernel as the runtime knows it.
template <class... P>
const void* FunctionOf(void (*kernel)(P...)) {
  return reinterpret_cast<const void*>(kernel);
}
// What the runtime lets a kernel's blocks have.
size_t AllowedSharedBytes(const void* kernel);

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned int cluster = 1;  // blocks along x that form one
};

// Runs the kernel now, or records it with copies of its arguments. 0, or the code of a failed
// launch.
template <class... P, class... A>
int Launch(void (*kernel)(P...), const LaunchShape& shape, Stream, A&&... arguments) {
  if (const size_t allowed = AllowedSharedBytes(FunctionOf(kernel)); shape.shared_bytes > allowed) {
    SetLaunchFault("a block has " + std::to_string(shape.shared_bytes) +
                   " bytes of shared memory, and the kernel was allowed " +
                   std::to_string(allowed) + ": kernels/cuda/shared_memory.h lists who needs more");
    return 1;  // cudaErrorInvalidValue
  }
  const std::tuple<P...> values(static_cast<P>(arguments)...);
  const auto run = [kernel, shape, values] {
    const std::string fault = simt::Run(
        shape.grid, shape.block, shape.shared_bytes, [&] { std::apply(kernel, values); },
        shape.cluster);
    if (fault.empty()) return 0;
    SetLaunchFault(fault);
    return 719;  // cudaErrorLaunchFailure
  };
  if (recording == nullptr) return run();
  recording->work.push_back(run);
  return 0;
}

}  // namespace verbatim::kernels::cuda

// What a Hopper GPU does beside a block's threads, for the emulator: barriers in shared memory that
// count arrivals and bytes, and copies of boxes of a matrix that complete them.
//
// As the PTX ISA has it (mbarrier, cp.async.bulk.tensor), and as late as it allows: the box's place
// is poisoned when the copy starts; the values arrive, one copy at a time, when no thread can go
// on, in seeded orders also before, oldest first, newest first or in random order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/emulator.h"

namespace simt {

// Where `shared` lies in the shared window. Dynamic shared memory begins at kSharedWindow there, a
// multiple of 128 and of nothing more.
inline constexpr uint32_t kSharedWindow = 1024 + 128;
uint32_t SharedAddressOf(const void* shared);
// The memory at an address of the shared window; null outside the block's.
const std::byte* SharedMemoryAt(uint32_t address);

// A phase of the barrier is over when `arrivals` have come and as many bytes as were expected.
void InitBarrier(const void* barrier, uint32_t arrivals, const Place& where);
// What lies at the place of `own`, of this block's shared memory, in another block of the cluster.
const void* AtRank(const void* own, uint32_t rank, const Place& where);
// Makes initialised barriers known to copies.
void FenceAsyncProxy();
// Expects so many bytes more in this phase, and arrives.
void Arrive(const void* barrier, uint32_t expected_bytes, const Place& where);
// Waits for the end of the phase of this parity; phases count from 0, and the one before the first
// is over.
void WaitForPhase(const void* barrier, uint32_t parity, const Place& where);

// A row-major matrix of 16-bit elements; boxes are 64 columns (128 bytes) of `box_rows` rows.
struct BoxedMatrix {
  const void* base = nullptr;
  int64_t cols = 0, rows = 0;
  int64_t pitch_bytes = 0;
  uint32_t box_rows = 0;
};
inline constexpr uint32_t kBoxRowBytes = 128;
// Starts the copy of the box whose first element is (row, column) to `shared`, with the 128-byte
// swizzle; elements that do not exist are zero. All its bytes complete `barrier`. `ranks`: the bits
// of the cluster's blocks in which it does so, at the same places.
void CopyBox(void* shared, const BoxedMatrix& matrix, int64_t column, int64_t row,
             const void* barrier, uint32_t ranks, const Place& where);

// The 128-byte swizzle: bits 4 to 6 of an address ^ bits 7 to 9.
constexpr uint32_t Swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

}  // namespace simt

// Runs a CUDA kernel's thread blocks on the host, each thread a fiber, without a GPU.
//
// Blocks, or clusters of them, run one after the other; the threads of a block take turns, each
// running until it meets a barrier or a warp operation. The order of blocks and of threads is
// chosen by Schedule, so that code which depends on an order gives different results; a seeded
// order also delays whole warps. Dynamic shared memory is filled with NaN patterns before every
// block. A fault (divergent barrier, exit before a barrier, wrong mask, write past shared memory)
// ends the launch with a message that names file and line.
//
// Not modelled: bank conflicts, memory ordering, alignment rules of matrix loads. What Hopper adds
// is in async.h and warpgroup.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace simt {

struct Dim3 {
  unsigned int x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

// A line of source.
struct Place {
  const char* file = "";
  int line = 0;
  // As a default argument: the caller's line.
  static constexpr Place Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Order : uint8_t { kForward, kReversed, kSeeded };

struct Schedule {
  Order order = Order::kForward;
  uint64_t seed = 0;  // kSeeded
};

// The order of every launch from now on.
void SetSchedule(const Schedule& schedule);

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kFullMask = 0xffffffffu;
inline constexpr uint8_t kPoison = 0xff;  // NaN in fp32, fp16 and bf16

// Runs body() once for every thread of every block. Empty, or what went wrong.
// Block sizes are multiples of 32, at most 1024. The blocks of a cluster, so many neighbours along
// x, run together; others one after the other.
std::string Run(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body,
                unsigned int cluster = 1);

// How many launches have run: tests show with it that kernels, not fallbacks, did the work.
int64_t LaunchCount();

// What kernels see; valid only inside Run.
const Dim3& ThreadIndex();
const Dim3& BlockIndex();
const Dim3& BlockSize();
const Dim3& GridSize();
std::byte* SharedMemory();
size_t SharedBytes();
// In the cluster: the thread, how many there are, the block, another block's shared memory (null if
// there is none, or no more).
unsigned int ThreadNumber();
unsigned int ThreadCount();
unsigned int ClusterRank();
std::byte* SharedMemoryOf(unsigned int rank);

// Waits for every thread of the cluster.
void SyncCluster(const Place& where);

// Waits for every thread of the block.
void SyncThreads(const Place& where);

// The arguments of the 32 lanes of a warp operation, and where their results go.
struct WarpLanes {
  const void* in[kWarpSize];
  void* out[kWarpSize];
};
// A warp operation: when the last lane has come, compute runs once for all. Lanes that come with
// another operation, or from another line, diverge: a fault. `order_memory` makes it a barrier of
// the warp for the race check.
void WarpOperation(uint32_t mask, const void* in, void* out, void (*compute)(WarpLanes& lanes),
                   bool order_memory, const Place& where);

// Asynchronous copies of this thread, carried out at the wait that covers them.
void CopyAsync(void* shared, const void* global, size_t size_bytes, size_t source_bytes);
void CopyAsyncCommit();
void CopyAsyncWait(int pending_groups);

// Lets others run until ready(object, argument), which changes nothing. `what` is named when that
// never comes.
void WaitUntil(bool (*ready)(const void* object, uint32_t argument), const void* object,
               uint32_t argument, const char* what, const Place& where);

// What goes on beside the threads of a block.
struct Background {
  void (*reset)();                   // before a block
  bool (*advance)(uint64_t choice);  // ends one thing that is under way; false where there is none
  const char* (*unfinished)();       // what must not be left at the block's end; empty for nothing
};
// Adds it, once, for this block and all that follow. When no thread can go on, and in seeded orders
// also before, it may advance.
void AddBackground(const Background* background);
// For a choice that the order leaves open: 0 in forward order, the greatest number in reversed, a
// random one in seeded order.
uint64_t OpenChoice();

// Ends the launch with this message, then the place `other` when there is one, then `where`.
[[noreturn]] void Fault(const char* message, const Place* other, const Place& where);

}  // namespace simt

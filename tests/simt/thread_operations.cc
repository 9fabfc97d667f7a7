// What threads of emulated blocks call.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "simt/emulator.h"
#include "simt/machine.h"

namespace simt {
namespace {

Machine& m = TheMachine();

bool Same(const Place& a, const Place& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

}  // namespace

const Dim3& ThreadIndex() { return m.current->index; }
const Dim3& BlockIndex() { return m.current->own->index; }
const Dim3& BlockSize() { return m.block; }
const Dim3& GridSize() { return m.grid; }
std::byte* SharedMemory() { return m.current->own->shared; }
size_t SharedBytes() { return m.shared_bytes; }
unsigned int ThreadNumber() { return m.current->number; }
unsigned int ThreadCount() { return m.all_threads(); }
unsigned int ClusterRank() { return static_cast<unsigned int>(m.current->own - m.blocks.data()); }
std::byte* SharedMemoryOf(unsigned int rank) {
  const bool lives = rank < m.blocks.size() && m.blocks[rank].done < m.threads;
  return lives ? m.blocks[rank].shared : nullptr;
}

void SyncCluster(const Place& where) {
  char* tag = &m.cluster_tags[m.cluster_generation % 2];
  const uint32_t generation = m.cluster_generation;
  Release(tag);
  if (++m.at_cluster_barrier == m.all_threads()) {
    m.at_cluster_barrier = 0;
    ++m.cluster_generation;
  } else {
    WaitUntil(
        [](const void* now, uint32_t then) { return *static_cast<const uint32_t*>(now) != then; },
        &m.cluster_generation, generation, "the cluster's barrier", where);
  }
  Acquire(tag);
}

void AddBackground(const Background* background) {
  if (std::find(m.background.begin(), m.background.end(), background) != m.background.end()) return;
  m.background.push_back(background);
  background->reset();
}

uint64_t OpenChoice() {
  switch (m.schedule.order) {
    case Order::kForward:
      return 0;
    case Order::kReversed:
      return ~uint64_t{0};
    case Order::kSeeded:
      break;
  }
  return m.rng();
}

void WaitUntil(bool (*ready)(const void* object, uint32_t argument), const void* object,
               uint32_t argument, const char* what, const Place& where) {
  if (ready(object, argument)) return;
  Thread* self = m.current;
  self->ready = ready;
  self->object = object;
  self->argument = argument;
  self->what = what;
  self->where = where;
  self->state = State::kWaiting;
  self->fiber.Suspend();
}

void Fault(const char* message, const Place* other, const Place& where) {
  // The fiber is abandoned: nothing on its stack may own memory.
  if (std::exchange(m.computing, false)) EndUnchecked();
  m.fault = ThreadName(*m.current) + ": " + message;
  if (other != nullptr) m.fault += " at " + Text(*other) + ", this one";
  m.fault += " at " + Text(where);
  m.current->fiber.Suspend();
  std::abort();  // a faulty launch is never resumed
}

void SyncThreads(const Place& where) {
  Thread* self = m.current;
  Block& own = *self->own;
  if (own.at_barrier > 0 && !Same(own.barrier_where, where)) {
    Fault("a divergent barrier: other threads wait", &own.barrier_where, where);
  }
  own.barrier_where = where;
  self->where = where;
  self->state = State::kAtBarrier;
  ++own.at_barrier;
  char* tag = &own.barrier_tags[own.barrier_generation % 2];
  Release(tag);
  self->fiber.Suspend();
  Acquire(tag);
}

void WarpOperation(uint32_t mask, const void* in, void* out, void (*compute)(WarpLanes& lanes),
                   bool order_memory, const Place& where) {
  Thread* self = m.current;
  if (mask != kFullMask) Fault("a warp operation with a mask that is not full", nullptr, where);
  Warp& warp = m.warps[self->number / kWarpSize];
  if (warp.arrived > 0 && (warp.compute != compute || !Same(warp.where, where))) {
    Fault("a divergent warp operation: other lanes wait", &warp.where, where);
  }
  warp.compute = compute;
  warp.where = where;
  warp.lanes.in[self->number % kWarpSize] = in;
  warp.lanes.out[self->number % kWarpSize] = out;
  self->where = where;
  char* tag = &warp.tags[warp.generation % 2];
  if (order_memory) Release(tag);
  if (++warp.arrived < kWarpSize) {
    self->state = State::kInWarpOperation;
    self->fiber.Suspend();
  } else {
    BeginUnchecked();
    m.computing = true;
    compute(warp.lanes);
    m.computing = false;
    EndUnchecked();
    warp.arrived = 0;
    ++warp.generation;
    const unsigned int first = self->number / kWarpSize * kWarpSize;
    for (unsigned int i = first; i < first + kWarpSize; ++i) m.pool[i]->state = State::kRunnable;
  }
  if (order_memory) Acquire(tag);
}

void CopyAsync(void* shared, const void* global, size_t size_bytes, size_t source_bytes) {
  m.current->copies.push_back({shared, global, size_bytes, source_bytes, m.current->copy_group});
}

void CopyAsyncCommit() { ++m.current->copy_group; }

void CopyAsyncWait(int pending_groups) {
  Thread& self = *m.current;
  while (!self.copies.empty() && self.copies.front().group < self.copy_group - pending_groups) {
    const PendingCopy& copy = self.copies.front();
    std::memcpy(copy.shared, copy.global, copy.source_bytes);
    std::memset(static_cast<std::byte*>(copy.shared) + copy.source_bytes, 0,
                copy.size_bytes - copy.source_bytes);
    self.copies.pop_front();
  }
}

}  // namespace simt

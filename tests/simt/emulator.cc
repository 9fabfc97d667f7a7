// The scheduler of emulated thread blocks.
#include "simt/emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "simt/fiber.h"

namespace simt {
namespace {

constexpr unsigned int kMaxThreads = 1024;
constexpr unsigned int kMaxCluster = 8;
constexpr size_t kCanaryBytes = 64;
constexpr uint8_t kCanary = 0x5a;

enum class State : uint8_t { kRunnable, kAtBarrier, kInWarpOperation, kWaiting, kDone };

struct PendingCopy {
  void* shared;
  const void* global;
  size_t size_bytes, source_bytes;
  int group;
};

// A block of the cluster that runs.
struct Block {
  Dim3 index;
  std::byte* shared = nullptr;  // then a canary
  unsigned int at_barrier = 0, done = 0;
  Place barrier_where;
  int barrier_generation = 0;
  char barrier_tags[2];
};

struct Thread {
  Fiber fiber;
  unsigned int number = 0;  // in the cluster
  Dim3 index;
  Block* own = nullptr;
  State state = State::kDone;
  Place where;
  bool (*ready)(const void*, uint32_t) = nullptr;  // kWaiting
  const void* object = nullptr;
  uint32_t argument = 0;
  const char* what = "";
  std::deque<PendingCopy> copies;
  int copy_group = 0;
};

struct Warp {
  int arrived = 0;
  void (*compute)(WarpLanes&) = nullptr;
  Place where;
  WarpLanes lanes;
  int generation = 0;
  bool rests = false;  // for this turn
  char tags[2];
};

std::string Text(const Place& where) {
  return std::string(where.file) + ":" + std::to_string(where.line);
}
bool Same(const Place& a, const Place& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

struct Machine {
  // Launches of several threads (ranks) take turns; recursive, to refuse a launch inside a launch.
  std::recursive_mutex mu;
  Schedule schedule;
  std::mt19937_64 rng;
  int64_t launches = 0;

  std::vector<std::unique_ptr<Thread>> pool;
  std::vector<Warp> warps;
  const std::function<void()>* body = nullptr;
  Dim3 grid, block;
  std::vector<Block> blocks;  // of a cluster
  std::unique_ptr<std::byte, decltype(&std::free)> shared{nullptr, &std::free};
  size_t shared_bytes = 0;
  std::vector<const Background*> background;
  unsigned int threads = 0;  // of a block
  unsigned int at_cluster_barrier = 0;
  uint32_t cluster_generation = 0;
  char cluster_tags[2];
  char launch_tag;
  Thread* current = nullptr;
  bool computing = false;  // a warp operation
  std::string fault;

  unsigned int all_threads() const { return threads * static_cast<unsigned int>(blocks.size()); }
  std::string RunCluster();
  void ThreadMain();
  bool AdvanceBackground();
  bool ReleaseBarrier(Block& of);
  std::string Deadlock() const;
};

Machine& TheMachine() {
  static Machine machine;
  return machine;
}
Machine& m = TheMachine();

std::string Text(const Dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}
std::string ThreadName(const Thread& thread) {
  return "thread " + Text(thread.index) + " of block " + Text(thread.own->index);
}

void Machine::ThreadMain() {
  Thread* self = current;
  Acquire(&launch_tag);
  (*body)();
  Release(&launch_tag);
  if (!self->copies.empty() && fault.empty()) {
    fault = ThreadName(*self) + " ends with asynchronous copies that it never waited for";
  }
  self->state = State::kDone;
  ++self->own->done;
  self->fiber.Suspend();
}

// Lets the threads go when all have come; false when some never will.
bool Machine::ReleaseBarrier(Block& of) {
  if (of.at_barrier == 0 || of.at_barrier + of.done < threads) return true;
  const unsigned int first = static_cast<unsigned int>(&of - blocks.data()) * threads;
  if (of.done > 0) {
    const auto gone = std::find_if(pool.begin() + first, pool.begin() + first + threads,
                                   [](const auto& t) { return t->state == State::kDone; });
    fault = ThreadName(**gone) + " ended before the barrier at " + Text(of.barrier_where);
    return false;
  }
  for (unsigned int i = first; i < first + threads; ++i) pool[i]->state = State::kRunnable;
  of.at_barrier = 0;
  ++of.barrier_generation;
  return true;
}

std::string Machine::Deadlock() const {
  for (unsigned int i = 0; i < all_threads(); ++i) {
    const Thread& thread = *pool[i];
    if (thread.state != State::kWaiting) continue;
    return ThreadName(thread) + " waits at " + Text(thread.where) + " for " + thread.what +
           " that never ends";
  }
  for (unsigned int i = 0; i < all_threads(); ++i) {
    const Thread& thread = *pool[i];
    if (thread.state != State::kInWarpOperation) continue;
    std::string message = ThreadName(thread) + " waits in a warp operation at " +
                          Text(thread.where) + " for a lane that ";
    const unsigned int first = i / kWarpSize * kWarpSize;
    for (unsigned int other = first; other < first + kWarpSize; ++other) {
      if (pool[other]->state == State::kDone) return message + "has ended";
      if (pool[other]->state == State::kAtBarrier) {
        return message + "waits at the barrier at " + Text(pool[other]->where);
      }
    }
    return message + "does not come";
  }
  return "no thread can go on";
}

bool Machine::AdvanceBackground() {
  const uint64_t choice = OpenChoice();
  return std::any_of(background.begin(), background.end(),
                     [&](const Background* b) { return b->advance(choice); });
}

std::string Machine::RunCluster() {
  for (Block& of : blocks) {
    std::memset(of.shared, kPoison, shared_bytes);
    std::memset(of.shared + shared_bytes, kCanary, kCanaryBytes);
    of.at_barrier = of.done = 0;
  }
  at_cluster_barrier = 0;
  fault.clear();
  for (Warp& warp : warps) warp.arrived = 0;
  for (const Background* b : background) b->reset();
  Release(&launch_tag);
  std::vector<unsigned int> order(all_threads());
  std::iota(order.begin(), order.end(), 0u);
  if (schedule.order == Order::kReversed) std::reverse(order.begin(), order.end());
  for (unsigned int i = 0; i < all_threads(); ++i) {
    Thread& thread = *pool[i];
    const unsigned int in_block = i % threads;
    thread.number = i;
    thread.own = &blocks[i / threads];
    thread.index =
        Dim3(in_block % block.x, in_block / block.x % block.y, in_block / (block.x * block.y));
    thread.state = State::kRunnable;
    thread.copies.clear();
    thread.copy_group = 0;
    thread.fiber.Start([](void* machine) { static_cast<Machine*>(machine)->ThreadMain(); }, this);
  }
  // A seeded order lets some warps lag behind by many turns, so that what a warp does early meets
  // what another still has to do.
  std::vector<unsigned int> laggard(warps.size(), 1);
  if (schedule.order == Order::kSeeded) {
    for (unsigned int& turns : laggard) turns = 1u << (2 * (rng() % 3));
  }
  const auto done = [&] {
    return std::all_of(blocks.begin(), blocks.end(),
                       [&](const Block& of) { return of.done == threads; });
  };
  while (fault.empty() && !done()) {
    if (schedule.order == Order::kSeeded) std::shuffle(order.begin(), order.end(), rng);
    for (Warp& warp : warps) {
      const unsigned int turns = laggard[static_cast<size_t>(&warp - warps.data())];
      warp.rests = turns > 1 && rng() % turns != 0;
    }
    if (schedule.order == Order::kSeeded && rng() % 4 == 0) AdvanceBackground();
    bool progress = false;
    for (unsigned int i : order) {
      Thread& thread = *pool[i];
      if (thread.state == State::kWaiting && thread.ready(thread.object, thread.argument)) {
        thread.state = State::kRunnable;
      }
      if (thread.state != State::kRunnable) continue;
      progress = true;
      if (warps[i / kWarpSize].rests) continue;
      current = &thread;
      thread.fiber.Resume();
      current = nullptr;
      if (!fault.empty() || !ReleaseBarrier(*thread.own)) break;
    }
    if (!progress && fault.empty() && !AdvanceBackground()) fault = Deadlock();
  }
  Acquire(&launch_tag);
  for (const Background* b : background) {
    const char* left = fault.empty() ? b->unfinished() : "";
    if (*left != '\0') {
      fault = "block " + Text(blocks[0].index) + " ends with " + left;
    }
  }
  for (const Block& of : blocks) {
    for (size_t i = 0; i < kCanaryBytes && fault.empty(); ++i) {
      if (of.shared[shared_bytes + i] != std::byte{kCanary}) {
        fault = "block " + Text(of.index) + " wrote past its " + std::to_string(shared_bytes) +
                " bytes of shared memory";
      }
    }
  }
  return fault;
}

}  // namespace

void SetSchedule(const Schedule& schedule) {
  std::lock_guard lock(m.mu);
  m.schedule = schedule;
  m.rng.seed(schedule.seed);
}

int64_t LaunchCount() {
  std::lock_guard lock(m.mu);
  return m.launches;
}

std::string Run(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body,
                unsigned int cluster) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || threads % kWarpSize != 0) {
    return "a block of " + std::to_string(threads) +
           " threads: not a multiple of 32 from 32 to 1024";
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu) return "the grid is too large";
  if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0) {
    return "a grid of " + std::to_string(grid.x) + " blocks in clusters of " +
           std::to_string(cluster);
  }
  std::lock_guard lock(m.mu);
  if (m.current != nullptr) return "a launch inside a launch";
  m.threads = static_cast<unsigned int>(threads);
  m.grid = grid;
  m.block = block;
  m.body = &body;
  m.blocks.resize(cluster);
  m.warps.resize(m.all_threads() / kWarpSize);
  while (m.pool.size() < m.all_threads()) m.pool.push_back(std::make_unique<Thread>());
  void* shared = nullptr;
  const size_t block_bytes = (shared_bytes + kCanaryBytes + 127) / 128 * 128;
  if (posix_memalign(&shared, 128, block_bytes * cluster) != 0) std::abort();
  m.shared.reset(static_cast<std::byte*>(shared));
  for (unsigned int i = 0; i < cluster; ++i) m.blocks[i].shared = m.shared.get() + i * block_bytes;
  m.shared_bytes = shared_bytes;
  ++m.launches;

  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z / cluster);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (m.schedule.order == Order::kReversed) std::reverse(order.begin(), order.end());
  if (m.schedule.order == Order::kSeeded) std::shuffle(order.begin(), order.end(), m.rng);
  for (uint64_t i : order) {
    for (unsigned int b = 0; b < cluster; ++b) {
      const uint64_t index = i * cluster + b;
      m.blocks[b].index = Dim3(static_cast<unsigned int>(index % grid.x),
                               static_cast<unsigned int>(index / grid.x % grid.y),
                               static_cast<unsigned int>(index / grid.x / grid.y));
    }
    std::string fault = m.RunCluster();
    if (!fault.empty()) {
      m.pool.clear();  // with whatever is left on their stacks
      return fault;
    }
  }
  return "";
}

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

// The scheduler of emulated thread blocks.
#include "simt/emulator.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "simt/machine.h"

namespace simt {
namespace {

constexpr unsigned int kMaxThreads = 1024;
constexpr unsigned int kMaxCluster = 8;
constexpr size_t kCanaryBytes = 64;
constexpr uint8_t kCanary = 0x5a;

Machine& m = TheMachine();

std::string Text(const Dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}
}  // namespace

Machine& TheMachine() {
  static Machine machine;
  return machine;
}

std::string Text(const Place& where) {
  return std::string(where.file) + ":" + std::to_string(where.line);
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

}  // namespace simt

// The state of the emulated GPU, which its scheduler and the operations of threads share.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "simt/emulator.h"
#include "simt/fiber.h"

namespace simt {

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

Machine& TheMachine();

std::string Text(const Place& where);
std::string ThreadName(const Thread& thread);

}  // namespace simt

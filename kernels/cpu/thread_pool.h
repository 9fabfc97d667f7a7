// A fixed team of threads that runs one parallel region at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace verbatim::kernels::cpu {

// Work is split by thread index alone, so which thread computes an element is fixed by shape and
// thread count. Waiting spins for some microseconds, then sleeps in the kernel.
class ThreadPool {
 public:
  // threads >= 1, the caller of Run included. Workers start with the default floating-point
  // environment (FTZ and DAZ off).
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(thread) once for every thread in [0, threads()), the caller being thread 0, and
  // returns when all have returned. One caller at a time; fn must not call Run.
  void Run(absl::FunctionRef<void(int thread)> fn);

  struct Range {
    int64_t begin, end;
  };
  // The part of [0, count) that belongs to `thread` of `threads`, in multiples of `grain` except at
  // the end.
  static Range PartOf(int64_t count, int64_t grain, int thread, int threads);

 private:
  void WorkerLoop(int thread);

  const absl::FunctionRef<void(int)>* task_ = nullptr;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<int32_t> running_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace verbatim::kernels::cpu

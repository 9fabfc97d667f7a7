// Threads for work that would take too long on gRPC's own: tokenising long texts.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace verbatim::server {

class TextWorkers {
 public:
  // At most `max_queued` jobs wait.
  TextWorkers(int threads, size_t max_queued);
  // Runs what is queued, then joins.
  ~TextWorkers();
  TextWorkers(const TextWorkers&) = delete;
  TextWorkers& operator=(const TextWorkers&) = delete;

  // False when the queue is full; the job is then dropped.
  bool TrySchedule(std::function<void()> job);

 private:
  void Loop();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;  // guarded by mutex_
  bool stop_ = false;                       // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace verbatim::server

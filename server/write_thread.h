// The thread that hands answers to gRPC, so that the engine's thread need not.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace verbatim::server {

class GenerateCall;

// A write costs a system call. Made here, it overlaps with the engine's next step; and what the
// engine adds meanwhile is taken in one go.
class WriteThread {
 public:
  WriteThread();
  // Pumps what was added, then joins.
  ~WriteThread();
  WriteThread(const WriteThread&) = delete;
  WriteThread& operator=(const WriteThread&) = delete;

  // Pumps the call soon; returns at once. A call is added once until it has been pumped.
  void Add(std::shared_ptr<GenerateCall> call);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<GenerateCall>> calls_;  // guarded by mutex_
  bool stop_ = false;                                 // guarded by mutex_
  std::thread thread_;
};

}  // namespace verbatim::server

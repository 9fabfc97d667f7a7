// CPU time that the front end (gRPC, tokenising, this room) has used.
#pragma once

#include <sys/types.h>

#include <vector>

namespace verbatim::server {

// Created once the engine's threads run and before those of the front end start: the front end's
// share is the process's CPU time since then, less that of the threads that existed already.
class FrontEndCpuTime {
 public:
  FrontEndCpuTime();
  double Seconds() const;  // may be called from any thread

 private:
  double OfOthers() const;

  std::vector<pid_t> others_;
  double process_at_start_;
  double others_at_start_;
};

}  // namespace verbatim::server

// The machine that an experiment ran on, and how fast it reads memory.
#pragma once

#include <string>

namespace verbatim::lab {

struct Machine {
  std::string cpu;  // as the kernel names it
  int cores = 0;    // that this process may use
  std::string isa;  // widest vector extension the CPU reports
  double memory_gib = 0;
  std::string system;  // "Linux 6.1.0"
};

Machine DescribeMachine();

// GB/s (10^9 bytes) at which `threads` threads together read memory that no cache holds: the best
// of several passes over 256 MiB.
double MeasureReadBandwidth(int threads);

}  // namespace verbatim::lab

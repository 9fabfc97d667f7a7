// What the machine can do at most: the figures that matrix products are measured against.
#pragma once

namespace verbatim::bench {

struct Machine {
  double fma_gflops = 0;         // one core, fp32 FMA on the widest vectors, two flops each
  double read_gb_per_s_one = 0;  // one core reading memory that no cache holds
  double read_gb_per_s_all = 0;  // `threads` cores at once
};

// The best of several short runs.
Machine MeasureMachine(int threads);

}  // namespace verbatim::bench

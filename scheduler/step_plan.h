// What one step of the engine computes: spans of consecutive positions of sequences, and where
// their pages are.
#pragma once

#include <cstdint>
#include <vector>

namespace verbatim::scheduler {

using SequenceId = uint64_t;

// Class of kernels that wrote a page or must serve a sequence. 0: throughput, no promise. Every
// other value stands for one numerics id; two pages with equal content and equal non-zero class
// hold equal bits.
using NumericsClass = uint32_t;
inline constexpr NumericsClass kThroughputClass = 0;

struct ScheduledSpan {
  SequenceId sequence = 0;
  int32_t first_position = 0;
  int32_t num_tokens =
      0;  // >= 1; positions first_position … first_position + num_tokens − 1 are computed
  bool samples =
      false;  // the span reaches the last known token, so its last row yields the next token
  std::vector<int32_t> pages;  // page ids from position 0 to the end of the span
};

struct StepPlan {
  std::vector<ScheduledSpan>
      spans;  // decode spans first, then prefill chunks, each in admission order
  std::vector<SequenceId> preempted;  // gave back all pages in this plan and will be recomputed
  std::vector<SequenceId> admitted;   // started in this plan (also after a preemption)
  int64_t num_tokens = 0;             // sum over the spans

  bool empty() const { return spans.empty(); }
};

}  // namespace verbatim::scheduler

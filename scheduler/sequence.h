// What the scheduler knows of one live sequence.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "scheduler/page_digest.h"
#include "scheduler/page_pool.h"
#include "scheduler/step_plan.h"

namespace verbatim::scheduler {

struct Sequence {
  SequenceId id = 0;
  uint64_t arrival_number = 0;  // FCFS order
  absl::Time arrival;
  NumericsClass numerics_class = kThroughputClass;
  std::string cache_salt;
  bool read_prefix_cache = true;

  std::vector<int32_t> tokens;  // prompt, then generated tokens
  int64_t prompt_tokens = 0;
  int64_t max_positions = 0;  // prompt + max_new_tokens − 1: the last token is never an input

  Digest root_digest{};
  std::vector<Digest> digests;  // of the first pages of `tokens`, as many as were needed so far

  bool running = false;  // admitted
  bool started = false;  // admitted and its cached prefix taken over

  // Positions 0 … computed − 1 are in `pages`, which cover them exactly. All pages but a last
  // partial one are full and read-only.
  int64_t computed = 0;
  std::vector<PageId> pages;
  // Class of kernels that wrote every position so far (kThroughputClass when they differ); nullopt
  // before the first.
  std::optional<NumericsClass> history;
  // First page that it ever wrote to, before or after a preemption.
  int64_t first_written_page = std::numeric_limits<int64_t>::max();

  int32_t planned = 0;           // tokens of the planned step
  bool planned_samples = false;  // its span yields a token
  bool awaits_token = false;     // the committed span yielded a token that was not appended yet

  // Positions that can be computed now.
  int64_t pending() const {
    return std::min(static_cast<int64_t>(tokens.size()), max_positions) - computed;
  }
  void RecordWriter(NumericsClass writer) {
    history = !history.has_value() || *history == writer ? writer : kThroughputClass;
  }
};

}  // namespace verbatim::scheduler

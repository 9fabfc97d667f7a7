// Which thread computes which stretch of which tile of an attention call.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cpu/attention_kernel.h"
#include "kernels/ops/kv_cache.h"

namespace verbatim::kernels::cpu {

struct AttentionWork {
  int32_t tile = 0;
  int64_t begin = 0, end = 0;  // positions; the tile is whole when state is null
  int64_t state = -1;          // offset into the plan's state memory, in elements; -1: whole
};

// A tile computed in pieces, joined once all threads are done.
struct AttentionJoin {
  int32_t tile = 0;
  int64_t first_state = 0;     // offset of the first piece's state; the others follow it
  int64_t state_elements = 0;  // between one piece's state and the next
  int64_t first_begin = 0;     // index into AttentionPlan::begins
  int64_t count = 0;
};

// Kept between calls, so that its memory is allocated once.
struct AttentionPlan {
  std::vector<AttentionTile> tiles;
  std::vector<std::vector<AttentionWork>> work;  // by thread
  std::vector<AttentionJoin> joins;
  std::vector<int64_t> begins;
  std::vector<float> states;
};

struct AttentionShape {
  int64_t num_kv_heads = 0;
  int64_t heads_per_kv = 0;
  int64_t v_stride = 0;
  bool strong = true;
};

// Cuts the rows of all spans into tiles and deals them to at most `threads` threads by cost, in one
// run a thread. A tile that a boundary between two threads hits is cut there: at multiples of the
// contract's cut for the strong policies, each cut becoming a piece of its own, and at any block
// otherwise. Small work stays on fewer threads.
void PlanAttention(const AttentionShape& shape, absl::Span<const SequenceSpan> spans, int threads,
                   AttentionPlan* plan);

}  // namespace verbatim::kernels::cpu

// Which thread computes which stretch of which tile of an attention call.
#include "kernels/cpu/attention_plan.h"

#include <algorithm>

namespace verbatim::kernels::cpu {
namespace {

// Cost of a stretch, in units of one query row and position: the rows, and the reading of K and V.
constexpr int64_t kReadCost = 4;
// Work below which a further thread is not worth waking (bench/attention_bench.cc).
constexpr int64_t kMinCostPerThread = 1024;

int64_t Visible(const AttentionShape& shape, const AttentionTile& tile) {
  return tile.first_position + (tile.row_end - 1) / shape.heads_per_kv + 1;
}

void AppendTiles(const AttentionShape& shape, const SequenceSpan& span,
                 std::vector<AttentionTile>* tiles) {
  const int64_t rows = span.num_rows * shape.heads_per_kv;
  const int64_t count = (rows + kAttentionTileRows - 1) / kAttentionTileRows;
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    for (int64_t i = 0; i < count; ++i) {
      tiles->push_back({.pages = span.pages,
                        .first_row = span.first_row,
                        .first_position = span.first_position,
                        .row_begin = rows * i / count,
                        .row_end = rows * (i + 1) / count,
                        .kv_head = head});
    }
  }
}

}  // namespace

void PlanAttention(const AttentionShape& shape, absl::Span<const SequenceSpan> spans, int threads,
                   AttentionPlan* plan) {
  plan->tiles.clear();
  plan->joins.clear();
  plan->begins.clear();
  plan->work.resize(threads);
  for (std::vector<AttentionWork>& work : plan->work) work.clear();
  for (const SequenceSpan& span : spans) AppendTiles(shape, span, &plan->tiles);

  const auto rate = [](const AttentionTile& tile) {
    return tile.row_end - tile.row_begin + kReadCost;
  };
  int64_t total = 0;
  for (const AttentionTile& tile : plan->tiles) total += rate(tile) * Visible(shape, tile);
  const int64_t used = std::clamp<int64_t>(total / kMinCostPerThread, 1, threads);

#ifdef VERBATIM_FAULT_ATTENTION_SPLIT
  // Only in builds that show that the conformance suite can fail: splits depend on the batch.
  const int64_t unit = shape.strong && spans.size() < 4 ? kAttentionCut : kAttentionBlock;
#else
  const int64_t unit = shape.strong ? kAttentionCut : kAttentionBlock;
#endif
  int64_t states = 0;
  int64_t cost_before = 0;
  int64_t thread = 0;
  for (size_t t = 0; t < plan->tiles.size(); ++t) {
    const AttentionTile& tile = plan->tiles[t];
    const int64_t visible = Visible(shape, tile);
    const int64_t cost = rate(tile) * visible;
    // Boundaries between threads that fall into this tile, moved to the nearest unit.
    const AttentionJoin join = {
        .tile = static_cast<int32_t>(t),
        .first_state = states,
        .state_elements = AttentionStateElements(tile.row_end - tile.row_begin, shape.v_stride),
        .first_begin = static_cast<int64_t>(plan->begins.size())};
    int64_t begin = 0;
    const auto add_pieces = [&](int64_t end) {
      while (begin < end) {
        const int64_t stop = shape.strong ? std::min(end, begin + kAttentionCut) : end;
        plan->work[thread].push_back({join.tile, begin, stop, states});
        plan->begins.push_back(begin);
        states += join.state_elements;
        begin = stop;
      }
    };
    while (thread + 1 < used && total * (thread + 1) / used < cost_before + cost) {
      const int64_t inside = (total * (thread + 1) / used - cost_before) / rate(tile);
      const int64_t split = std::min((inside + unit / 2) / unit * unit, visible);
      if (split == visible) break;
      add_pieces(split);
      ++thread;
    }
    if (begin == 0) {
      plan->work[thread].push_back({join.tile, 0, visible, -1});
    } else {
      add_pieces(visible);
      plan->joins.push_back(join);
      plan->joins.back().count = static_cast<int64_t>(plan->begins.size()) - join.first_begin;
    }
    cost_before += cost;
    while (thread + 1 < used && total * (thread + 1) / used <= cost_before) ++thread;
  }
  if (static_cast<int64_t>(plan->states.size()) < states) plan->states.resize(states);
}

}  // namespace verbatim::kernels::cpu

// Attention over the paged cache in host memory.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {
namespace {

AttentionKernel KernelFor(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return isa_avx512::GetAttentionKernel();
  if (isa == Isa::kAvx2) return isa_avx2::GetAttentionKernel();
#else
  (void)isa;
#endif
  return isa_scalar::GetAttentionKernel();
}

}  // namespace

absl::Status Attention(const CpuContext& context, const AttentionParams& params) {
  if (std::all_of(params.spans.begin(), params.spans.end(),
                  [](const SequenceSpan& span) { return span.num_rows == 0; })) {
    return absl::OkStatus();
  }
  const auto* cache = dynamic_cast<const CpuKvCache*>(params.cache);
  if (cache == nullptr) {
    return absl::InvalidArgumentError("Attention: the cache is not one of this backend");
  }
  const KvCacheConfig& config = cache->config();
  if (absl::Status status = CheckAttention(params, config); !status.ok()) return status;
  const int64_t element_bytes = config.dtype == DType::kF32 ? 4 : 2;
  const bool strong = IsStrong(params.mode.policy);
  const AttentionCall call = {
      .pages = cache->Head(params.layer, 0, 0),
      .page_bytes = cache->head_elements() * config.num_kv_heads * element_bytes,
      .head_bytes = cache->head_elements() * element_bytes,
      .v_offset = cache->v_offset(),
      .v_stride = cache->v_stride(),
      .page_tokens = config.page_tokens,
      .head_dim = config.head_dim,
      .bf16_pages = config.dtype == DType::kBF16,
      .heads_per_kv = params.num_heads / config.num_kv_heads,
      .scale = params.scale,
      .q = params.q,
      .q_stride = params.q_stride,
      .y = params.y,
      .y_stride = params.y_stride,
      .strong = strong,
      .round_output = !strong && params.mode.activations == ActivationType::kBF16,
  };
  // One plan a calling thread: the engine calls once a layer, and the memory is worth keeping.
  thread_local AttentionPlan plan_of_thread;
  AttentionPlan& plan = plan_of_thread;
  PlanAttention({.num_kv_heads = config.num_kv_heads,
                 .heads_per_kv = call.heads_per_kv,
                 .v_stride = call.v_stride,
                 .strong = strong},
                params.spans, context.pool->threads(), &plan);
  const AttentionKernel kernel = KernelFor(context.isa);
  const auto run = [&](int thread) {
    const std::vector<AttentionWork>& works = plan.work[thread];
    for (size_t i = 0; i < works.size(); ++i) {
      const AttentionWork& work = works[i];
      const AttentionTile& tile = plan.tiles[work.tile];
      const bool last = i + 1 == works.size();
      const AttentionTile* next_tile = last ? nullptr : &plan.tiles[works[i + 1].tile];
      const int64_t next_begin = last ? 0 : works[i + 1].begin;
      if (work.state < 0) {
        kernel.whole(call, tile, next_tile, next_begin);
      } else {
        kernel.piece(call, tile, work.begin, work.end, next_tile, next_begin,
                     plan.states.data() + work.state);
      }
    }
  };
  const bool alone = std::all_of(plan.work.begin() + 1, plan.work.end(),
                                 [](const auto& work) { return work.empty(); });
  if (alone) {
    run(0);
  } else {
    context.pool->Run(run);
  }
  for (const AttentionJoin& join : plan.joins) {
    kernel.join(call, plan.tiles[join.tile], plan.states.data() + join.first_state,
                join.state_elements, plan.begins.data() + join.first_begin, join.count);
  }
  return absl::OkStatus();
}

std::vector<AttentionCut> AttentionCuts(const CpuContext& context, const NumericMode& mode,
                                        const KvCacheConfig& cache, int64_t num_heads,
                                        absl::Span<const SequenceSpan> spans) {
  std::vector<AttentionCut> cuts;
  if (IsStrong(mode.policy)) return cuts;
  AttentionPlan plan;
  PlanAttention({.num_kv_heads = cache.num_kv_heads,
                 .heads_per_kv = num_heads / cache.num_kv_heads,
                 .v_stride = 0,  // sizes states, decides no cut
                 .strong = false},
                spans, context.pool->threads(), &plan);
  for (const AttentionJoin& join : plan.joins) {
    const AttentionTile& tile = plan.tiles[join.tile];
    AttentionCut cut;
    // The plan makes tiles in span order; a tile knows its span by its first batch row.
    cut.span = static_cast<int32_t>(std::find_if(spans.begin(), spans.end(),
                                                 [&](const SequenceSpan& span) {
                                                   return span.num_rows > 0 &&
                                                          span.first_row == tile.first_row;
                                                 }) -
                                    spans.begin());
    cut.kv_head = static_cast<int32_t>(tile.kv_head);
    cut.row_begin = static_cast<int32_t>(tile.row_begin);
    for (int64_t i = 1; i < join.count; ++i) {
      cut.positions.push_back(static_cast<int32_t>(plan.begins[join.first_begin + i]));
    }
    cuts.push_back(std::move(cut));
  }
  return cuts;
}

}  // namespace verbatim::kernels::cpu

// Attention over the paged cache in host memory.
//
// THROUGHPUT runs the same kernels without the cuts, and splits the KV axis at any block to fill
// the threads. Nothing else was faster: decoding runs at the speed of the memory, and a prefill
// whose exponentials cost nothing at all would be about a tenth faster (bench/attention_bench.cc).
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/attention.h"

namespace verbatim::kernels::cpu {

absl::Status Attention(const CpuContext& context, const AttentionParams& params);

// What Attention cuts for these spans (kernels/backend.h).
std::vector<AttentionCut> AttentionCuts(const CpuContext& context, const NumericMode& mode,
                                        const KvCacheConfig& cache, int64_t num_heads,
                                        absl::Span<const SequenceSpan> spans);

}  // namespace verbatim::kernels::cpu

// What kernels need to know about the spans of a batch, as flat tables.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/cuda/launchers.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/kv_cache.h"

namespace verbatim::kernels::cuda {

// Tables of the rows to write.
void BuildKvRows(const KvCacheConfig& config, absl::Span<const SequenceSpan> spans,
                 std::vector<KvRow>* rows);

struct AttentionTables {
  // For the matrix units: first the tiles of the split way, then those of the other.
  std::vector<AttentionTile> tiles;
  int64_t split_tiles = 0;
  std::vector<int32_t> pages;       // of the spans, one after the other
  std::vector<int32_t> row_cuts;    // by row of the batch; 0 for rows whose cuts are not folded
  int64_t tile_queries = 8;         // PORTABLE
  int64_t max_cuts = 0;             // of rows whose cuts may be folded
  int64_t max_walk_cuts = 0;        // of the others
  int64_t cut_length = kCutLength;  // of the cuts that are folded
};
// PORTABLE: cuts the queries of every span into tiles of 8, or of 32 where a span has more than 8.
void BuildAttentionTables(const KvCacheConfig& config, int64_t heads_per_kv,
                          absl::Span<const SequenceSpan> spans, AttentionTables* tables);
// Positions of the cuts that THROUGHPUT's split way has: short ones where it computes all spans and
// the contract's, more than one, would be fewer blocks than there are multiprocessors. Rows and
// cuts count as GraphRows and GraphCuts of them: a recorded step decides as others do.
int64_t ThroughputCutLength(const KvCacheConfig& config, int64_t heads_per_kv,
                            absl::Span<const SequenceSpan> spans, int64_t max_row_cuts,
                            int64_t multiprocessors);
// What CudaBackend::AttentionCuts says of it.
std::vector<AttentionCut> SplitCuts(const KvCacheConfig& config, int64_t heads_per_kv,
                                    absl::Span<const SequenceSpan> spans, int64_t cut_length);
// For the matrix units. Spans with few queries are split by cuts, unless their partials, one for
// each row of the batch up to theirs and each cut, would be more than max_row_cuts.
void BuildAttentionMmaTables(const KvCacheConfig& config, int64_t heads_per_kv,
                             absl::Span<const SequenceSpan> spans, int64_t max_row_cuts,
                             int64_t cut_length, AttentionTables* tables);

// What shapes the launches of a decode step's attention, a function of `rows` and of GraphCuts of
// the longest history (and of what is the same in all steps: heads, policy, workspace).
struct DecodeCuts {
  bool walks = false;    // the walk of the matrix units
  int64_t max_cuts = 0;  // as in AttentionTables
  int64_t max_walk_cuts = 0;
};
DecodeCuts DecodeCutsOf(int64_t heads_per_kv, absl::Span<const SequenceSpan> spans, int64_t rows,
                        bool mma, int64_t max_row_cuts, int64_t cut_length);

// The tables of a decode step that computes `rows` rows, the last of them padding: how many tiles,
// the way of the matrix units (`mma`) and the numbers of cuts, of which there may be more than any
// row has, depend on `rows` and on GraphCuts of the longest history alone.
void BuildDecodeTables(const KvCacheConfig& config, int64_t heads_per_kv,
                       absl::Span<const SequenceSpan> spans, int64_t rows, bool mma,
                       int64_t max_row_cuts, int64_t cut_length, AttentionTables* tables);

// Whether two lists of spans name the same rows and pages; remembers the last list.
class SpanMemory {
 public:
  // True if `spans` and salts are those of the call before; remembers them otherwise.
  bool SameAsBefore(absl::Span<const SequenceSpan> spans, int64_t salt, int64_t more_salt = 0);
  void Forget() { known_ = false; }

 private:
  bool known_ = false;
  std::vector<int64_t> words_, candidate_;
};

}  // namespace verbatim::kernels::cuda

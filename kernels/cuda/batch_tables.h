// What kernels need to know about the spans of a batch, as flat tables.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/cuda/launchers.h"
#include "kernels/ops/kv_cache.h"

namespace verbatim::kernels::cuda {

// Tables of the rows to write.
void BuildKvRows(const KvCacheConfig& config, absl::Span<const SequenceSpan> spans,
                 std::vector<KvRow>* rows);

struct AttentionTables {
  std::vector<AttentionTile> tiles;
  std::vector<int32_t> pages;     // of the spans, one after the other
  std::vector<int32_t> row_cuts;  // by row of the batch; 0 for rows of no span
  int64_t tile_queries = 8;
  int64_t max_cuts = 0;
};
// Cuts the queries of every span into tiles of 8, or of 32 where a span has more than 8.
void BuildAttentionTables(const KvCacheConfig& config, int64_t heads_per_kv,
                          absl::Span<const SequenceSpan> spans, AttentionTables* tables);

// Whether two lists of spans name the same rows and pages; remembers the last list.
class SpanMemory {
 public:
  // True if `spans` and `salt` are those of the call before; remembers them otherwise.
  bool SameAsBefore(absl::Span<const SequenceSpan> spans, int64_t salt);
  void Forget() { known_ = false; }

 private:
  bool known_ = false;
  std::vector<int64_t> words_, candidate_;
};

}  // namespace verbatim::kernels::cuda

// Flattening of spans.
#include "kernels/cuda/batch_tables.h"

#include <algorithm>

namespace verbatim::kernels::cuda {
namespace {

constexpr int64_t kCut = 256;

int64_t PagesOf(const KvCacheConfig& config, const SequenceSpan& span) {
  const int64_t positions = int64_t{span.first_position} + span.num_rows;
  return (positions + config.page_tokens - 1) / config.page_tokens;
}

}  // namespace

void BuildKvRows(const KvCacheConfig& config, absl::Span<const SequenceSpan> spans,
                 std::vector<KvRow>* rows) {
  rows->clear();
  for (const SequenceSpan& span : spans) {
    for (int32_t i = 0; i < span.num_rows; ++i) {
      const int64_t position = int64_t{span.first_position} + i;
      rows->push_back({span.first_row + i, span.pages[position / config.page_tokens],
                       static_cast<int32_t>(position % config.page_tokens)});
    }
  }
}

void BuildAttentionTables(const KvCacheConfig& config, int64_t heads_per_kv,
                          absl::Span<const SequenceSpan> spans, AttentionTables* tables) {
  tables->tiles.clear();
  tables->pages.clear();
  tables->row_cuts.clear();
  tables->max_cuts = 0;
  int64_t rows = 0, most_queries = 0;
  for (const SequenceSpan& span : spans) {
    rows = std::max<int64_t>(rows, int64_t{span.first_row} + span.num_rows);
    most_queries = std::max(most_queries, span.num_rows * heads_per_kv);
  }
  tables->row_cuts.assign(static_cast<size_t>(rows), 0);
  tables->tile_queries = most_queries > 8 ? 32 : 8;
  for (const SequenceSpan& span : spans) {
    if (span.num_rows == 0) continue;
    const int32_t first_page = static_cast<int32_t>(tables->pages.size());
    tables->pages.insert(tables->pages.end(), span.pages, span.pages + PagesOf(config, span));
    const int64_t queries = int64_t{span.num_rows} * heads_per_kv;
    for (int64_t query = 0; query < queries; query += tables->tile_queries) {
      tables->tiles.push_back(
          {span.first_row, span.first_position, static_cast<int32_t>(query),
           static_cast<int32_t>(std::min(tables->tile_queries, queries - query)), first_page});
    }
    for (int32_t i = 0; i < span.num_rows; ++i) {
      const int64_t cuts = (int64_t{span.first_position} + i + kCut) / kCut;
      tables->row_cuts[static_cast<size_t>(int64_t{span.first_row} + i)] =
          static_cast<int32_t>(cuts);
      tables->max_cuts = std::max(tables->max_cuts, cuts);
    }
  }
}

bool SpanMemory::SameAsBefore(absl::Span<const SequenceSpan> spans, int64_t salt) {
  candidate_.clear();
  candidate_.push_back(salt);
  for (const SequenceSpan& span : spans) {
    if (span.num_rows == 0) continue;
    candidate_.insert(candidate_.end(),
                      {span.first_row, span.num_rows, span.first_position, span.num_pages});
    candidate_.insert(candidate_.end(), span.pages, span.pages + span.num_pages);
  }
  if (known_ && candidate_ == words_) return true;
  words_.swap(candidate_);
  known_ = true;
  return false;
}

}  // namespace verbatim::kernels::cuda

// Flattening of spans.
#include "kernels/cuda/batch_tables.h"

#include <algorithm>

#include "kernels/cuda/step_graphs.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int64_t kCut = 256;

int64_t PagesOf(const KvCacheConfig& config, const SequenceSpan& span) {
  const int64_t positions = int64_t{span.first_position} + span.num_rows;
  return (positions + config.page_tokens - 1) / config.page_tokens;
}

int64_t CutsOf(int64_t positions) { return (positions + kCut - 1) / kCut; }

// Up to two tiles of the split way: the history is then read twice, mostly from the L2 cache.
bool HasFewQueries(const SequenceSpan& span, int64_t heads_per_kv) {
  return span.num_rows * heads_per_kv <= 2 * kSplitTileQueries;
}

void Clear(AttentionTables* tables) {
  tables->tiles.clear();
  tables->pages.clear();
  tables->row_cuts.clear();
  tables->split_tiles = tables->max_cuts = tables->max_walk_cuts = 0;
}

// The index of the span's first page.
int32_t AddPages(const KvCacheConfig& config, const SequenceSpan& span, AttentionTables* tables) {
  const int32_t first = static_cast<int32_t>(tables->pages.size());
  if (span.num_rows > 0) {
    tables->pages.insert(tables->pages.end(), span.pages, span.pages + PagesOf(config, span));
  }
  return first;
}

void AddTiles(const SequenceSpan& span, int32_t first_page, int64_t heads_per_kv,
              int64_t tile_queries, AttentionTables* tables) {
  const int64_t queries = int64_t{span.num_rows} * heads_per_kv;
  for (int64_t query = 0; query < queries; query += tile_queries) {
    tables->tiles.push_back({span.first_row, span.first_position, static_cast<int32_t>(query),
                             static_cast<int32_t>(std::min(tile_queries, queries - query)),
                             first_page});
  }
}

void AddCuts(const SequenceSpan& span, AttentionTables* tables) {
  for (int32_t i = 0; i < span.num_rows; ++i) {
    const int64_t cuts = CutsOf(int64_t{span.first_position} + i + 1);
    tables->row_cuts[static_cast<size_t>(int64_t{span.first_row} + i)] = static_cast<int32_t>(cuts);
    tables->max_cuts = std::max(tables->max_cuts, cuts);
  }
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
  Clear(tables);
  int64_t rows = 0, most_queries = 0;
  for (const SequenceSpan& span : spans) {
    rows = std::max<int64_t>(rows, int64_t{span.first_row} + span.num_rows);
    most_queries = std::max(most_queries, span.num_rows * heads_per_kv);
  }
  tables->row_cuts.assign(static_cast<size_t>(rows), 0);
  tables->tile_queries = most_queries > 8 ? 32 : 8;
  for (const SequenceSpan& span : spans) {
    if (span.num_rows == 0) continue;
    AddTiles(span, AddPages(config, span, tables), heads_per_kv, tables->tile_queries, tables);
    AddCuts(span, tables);
  }
}

void BuildAttentionMmaTables(const KvCacheConfig& config, int64_t heads_per_kv,
                             absl::Span<const SequenceSpan> spans, int64_t max_row_cuts,
                             AttentionTables* tables) {
  Clear(tables);
  int64_t rows = 0, split_rows = 0, split_cuts = 0;
  for (const SequenceSpan& span : spans) {
    const int64_t end = int64_t{span.first_row} + span.num_rows;
    rows = std::max(rows, end);
    if (!HasFewQueries(span, heads_per_kv)) continue;
    split_rows = std::max(split_rows, end);
    split_cuts = std::max(split_cuts, CutsOf(int64_t{span.first_position} + span.num_rows));
  }
  const bool split = split_cuts == 1 || split_rows * split_cuts <= max_row_cuts;
  tables->row_cuts.assign(static_cast<size_t>(split ? split_rows : 0), 0);
  std::vector<int32_t> first_pages;
  for (const SequenceSpan& span : spans) first_pages.push_back(AddPages(config, span, tables));
  for (bool few : {true, false}) {
    for (size_t i = 0; i < spans.size(); ++i) {
      const SequenceSpan& span = spans[i];
      if (span.num_rows == 0 || (split && HasFewQueries(span, heads_per_kv)) != few) continue;
      AddTiles(span, first_pages[i], heads_per_kv, few ? kSplitTileQueries : kWalkTileQueries,
               tables);
      if (few) {
        AddCuts(span, tables);
      } else {
        tables->max_walk_cuts =
            std::max(tables->max_walk_cuts, CutsOf(int64_t{span.first_position} + span.num_rows));
      }
    }
    if (few) tables->split_tiles = static_cast<int64_t>(tables->tiles.size());
  }
}

void BuildDecodeTables(const KvCacheConfig& config, int64_t heads_per_kv,
                       absl::Span<const SequenceSpan> spans, int64_t rows, bool mma,
                       int64_t max_row_cuts, AttentionTables* tables) {
  Clear(tables);
  int64_t most_cuts = 1;
  for (const SequenceSpan& span : spans) {
    most_cuts = std::max(most_cuts, CutsOf(int64_t{span.first_position} + 1));
  }
  const int64_t cuts = GraphCuts(most_cuts);
  const bool walks =
      mma && (heads_per_kv > 2 * kSplitTileQueries || (cuts > 1 && rows * cuts > max_row_cuts));
  tables->tile_queries = heads_per_kv > 8 ? 32 : 8;
  int64_t tile_queries = tables->tile_queries;
  if (mma) tile_queries = walks ? kWalkTileQueries : kSplitTileQueries;
  tables->row_cuts.assign(static_cast<size_t>(walks ? 0 : rows), 0);
  for (size_t i = 0; i < spans.size(); ++i) {
    AddTiles(spans[i], AddPages(config, spans[i], tables), heads_per_kv, tile_queries, tables);
    if (!walks) {
      tables->row_cuts[i] = static_cast<int32_t>(CutsOf(int64_t{spans[i].first_position} + 1));
    }
  }
  tables->tiles.resize(
      static_cast<size_t>(rows * ((heads_per_kv + tile_queries - 1) / tile_queries)),
      AttentionTile{});
  if (mma && !walks) tables->split_tiles = static_cast<int64_t>(tables->tiles.size());
  (walks ? tables->max_walk_cuts : tables->max_cuts) = cuts;
}

bool SpanMemory::SameAsBefore(absl::Span<const SequenceSpan> spans, int64_t salt,
                              int64_t more_salt) {
  candidate_.clear();
  candidate_.insert(candidate_.end(), {salt, more_salt});
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

// Flattening of spans.
#include "kernels/cuda/batch_tables.h"

#include <algorithm>

#include "kernels/cuda/step_graphs.h"

namespace verbatim::kernels::cuda {
namespace {

int64_t PagesOf(const KvCacheConfig& config, const SequenceSpan& span) {
  const int64_t positions = int64_t{span.first_position} + span.num_rows;
  return (positions + config.page_tokens - 1) / config.page_tokens;
}

int64_t CutsOf(int64_t positions, int64_t length = kCutLength) {
  return (positions + length - 1) / length;
}

// Up to two tiles of the split way: the history is then read twice, mostly from the L2 cache.
bool HasFewQueries(const SequenceSpan& span, int64_t heads_per_kv) {
  return span.num_rows * heads_per_kv <= 2 * kSplitTileQueries;
}

void Clear(AttentionTables* tables) {
  tables->tiles.clear();
  tables->pages.clear();
  tables->row_cuts.clear();
  tables->split_tiles = tables->max_cuts = tables->max_walk_cuts = 0;
  tables->cut_length = kCutLength;
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
    const int64_t cuts = CutsOf(int64_t{span.first_position} + i + 1, tables->cut_length);
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

int64_t ThroughputCutLength(const KvCacheConfig& config, int64_t heads_per_kv,
                            absl::Span<const SequenceSpan> spans, int64_t max_row_cuts,
                            int64_t multiprocessors) {
  int64_t rows = 0, longest = 0;
  for (const SequenceSpan& span : spans) {
    if (span.num_rows == 0) continue;
    if (!HasFewQueries(span, heads_per_kv)) return kCutLength;
    rows = std::max(rows, int64_t{span.first_row} + span.num_rows);
    longest = std::max(longest, int64_t{span.first_position} + span.num_rows);
  }
  rows = GraphRows(rows);
  const int64_t cuts = GraphCuts(CutsOf(longest));
  const int64_t tiles = rows * ((heads_per_kv + kSplitTileQueries - 1) / kSplitTileQueries);
  const bool pays = cuts > 1 && tiles * config.num_kv_heads * cuts < multiprocessors;
  const bool fits = rows * cuts * (kCutLength / kShortCutLength) <= max_row_cuts;
  return pays && fits ? kShortCutLength : kCutLength;
}

std::vector<AttentionCut> SplitCuts(const KvCacheConfig& config, int64_t heads_per_kv,
                                    absl::Span<const SequenceSpan> spans, int64_t cut_length) {
  std::vector<AttentionCut> cuts;
  AttentionTables tiles;
  for (size_t i = 0; i < spans.size(); ++i) {
    tiles.tiles.clear();
    AddTiles(spans[i], 0, heads_per_kv, kSplitTileQueries, &tiles);
    for (const AttentionTile& tile : tiles.tiles) {
      const int64_t last_row = (tile.first_query + tile.num_queries - 1) / heads_per_kv;
      AttentionCut cut;
      cut.span = static_cast<int32_t>(i);
      cut.row_begin = tile.first_query;
      for (int64_t p = cut_length; p <= tile.first_position + last_row; p += cut_length) {
        cut.positions.push_back(static_cast<int32_t>(p));
      }
      if (cut.positions.empty()) continue;
      for (int64_t head = 0; head < config.num_kv_heads; ++head) {
        cut.kv_head = static_cast<int32_t>(head);
        cuts.push_back(cut);
      }
    }
  }
  return cuts;
}

void BuildAttentionMmaTables(const KvCacheConfig& config, int64_t heads_per_kv,
                             absl::Span<const SequenceSpan> spans, int64_t max_row_cuts,
                             int64_t cut_length, AttentionTables* tables) {
  Clear(tables);
  tables->cut_length = cut_length;
  int64_t rows = 0, split_rows = 0, split_cuts = 0;
  for (const SequenceSpan& span : spans) {
    const int64_t end = int64_t{span.first_row} + span.num_rows;
    rows = std::max(rows, end);
    if (!HasFewQueries(span, heads_per_kv)) continue;
    split_rows = std::max(split_rows, end);
    split_cuts =
        std::max(split_cuts, CutsOf(int64_t{span.first_position} + span.num_rows, cut_length));
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

DecodeCuts DecodeCutsOf(int64_t heads_per_kv, absl::Span<const SequenceSpan> spans, int64_t rows,
                        bool mma, int64_t max_row_cuts, int64_t cut_length) {
  int64_t most_cuts = 1;
  for (const SequenceSpan& span : spans) {
    most_cuts = std::max(most_cuts, CutsOf(int64_t{span.first_position} + 1));
  }
  const int64_t cuts = GraphCuts(most_cuts);
  DecodeCuts out;
  out.walks =
      mma && (heads_per_kv > 2 * kSplitTileQueries || (cuts > 1 && rows * cuts > max_row_cuts));
  (out.walks ? out.max_walk_cuts : out.max_cuts) = cuts * (kCutLength / cut_length);
  return out;
}

void BuildDecodeTables(const KvCacheConfig& config, int64_t heads_per_kv,
                       absl::Span<const SequenceSpan> spans, int64_t rows, bool mma,
                       int64_t max_row_cuts, int64_t cut_length, AttentionTables* tables) {
  Clear(tables);
  tables->cut_length = cut_length;
  const auto [walks, max_cuts, max_walk_cuts] =
      DecodeCutsOf(heads_per_kv, spans, rows, mma, max_row_cuts, cut_length);
  tables->tile_queries = heads_per_kv > 8 ? 32 : 8;
  int64_t tile_queries = tables->tile_queries;
  if (mma) tile_queries = walks ? kWalkTileQueries : kSplitTileQueries;
  tables->row_cuts.assign(static_cast<size_t>(walks ? 0 : rows), 0);
  for (size_t i = 0; i < spans.size(); ++i) {
    AddTiles(spans[i], AddPages(config, spans[i], tables), heads_per_kv, tile_queries, tables);
    if (!walks) {
      tables->row_cuts[i] =
          static_cast<int32_t>(CutsOf(int64_t{spans[i].first_position} + 1, cut_length));
    }
  }
  tables->tiles.resize(
      static_cast<size_t>(rows * ((heads_per_kv + tile_queries - 1) / tile_queries)),
      AttentionTile{});
  if (mma && !walks) tables->split_tiles = static_cast<int64_t>(tables->tiles.size());
  tables->max_cuts = max_cuts;
  tables->max_walk_cuts = max_walk_cuts;
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

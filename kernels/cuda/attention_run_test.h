// Runs attention for tests: sequences with random values, in shuffled pages among poisoned ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/backend_pair_test.h"

namespace verbatim::kernels::cuda {

struct AttentionShape {
  int64_t heads = 4, kv_heads = 2, head_dim = 64, page_tokens = 32;
  DType dtype = DType::kF32;
  NumericMode mode = {};
  int64_t decode_rows = 0;  // more than 0: as two decode steps of so many rows, the second a replay

  int64_t q_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
  int64_t stride() const { return q_size() + 2 * kv_size(); }
};

// One sequence: its rows are those of positions [first, first + rows), the ones before are written
// first.
struct AttentionSequence {
  int32_t first = 0, rows = 1;
  int32_t id = -1;  // sequences of one id have the same values; −1: their place in the batch
  int32_t bad_position = -1;  // K and V of this one are NaN and infinite
};

// Query, key and value of each position, [positions, stride]. A position's values do not depend on
// how many there are, or on where rows lie in a batch.
inline std::vector<float> AttentionInputs(const AttentionShape& shape,
                                          const AttentionSequence& sequence, uint32_t place,
                                          int64_t positions, uint32_t seed, float value_scale) {
  const uint32_t id = sequence.id < 0 ? place : static_cast<uint32_t>(sequence.id);
  std::vector<float> all = RandomFloats(positions * shape.stride(), seed + 100 + id, value_scale);
  if (sequence.bad_position >= 0 && sequence.bad_position < positions) {
    float* row = all.data() + sequence.bad_position * shape.stride() + shape.q_size();
    std::fill(row, row + shape.kv_size(), std::nanf(""));
    std::fill(row + shape.kv_size(), row + 2 * shape.kv_size(), INFINITY);
  }
  return all;
}

// What a batch of them cuts shorter than the contract does.
inline std::vector<AttentionCut> CutsOf(const Backend& backend, const AttentionShape& shape,
                                        const std::vector<AttentionSequence>& sequences) {
  std::vector<SequenceSpan> spans;
  int32_t row = 0;
  for (const AttentionSequence& s : sequences) {
    spans.push_back({.first_row = row, .num_rows = s.rows, .first_position = s.first});
    row += s.rows;
  }
  return backend.AttentionCuts(shape.mode,
                               {.num_layers = 2,
                                .num_kv_heads = shape.kv_heads,
                                .head_dim = shape.head_dim,
                                .page_tokens = shape.page_tokens,
                                .num_pages = 1,
                                .dtype = shape.dtype},
                               shape.heads, spans);
}

// Outputs of all rows of all sequences, in order.
inline std::vector<float> RunAttention(Backend& backend, const AttentionShape& shape,
                                       const std::vector<AttentionSequence>& sequences,
                                       uint32_t seed = 51, float value_scale = 1.0f) {
  constexpr int64_t kLayers = 2, kLayer = 1;
  int64_t pages_needed = 0, rows = 0;
  for (const AttentionSequence& s : sequences) {
    pages_needed += (s.first + s.rows + shape.page_tokens - 1) / shape.page_tokens;
    rows += s.rows;
  }
  const int64_t num_pages = 2 * pages_needed + 1;
  auto cache = backend.CreateKvCache({.num_layers = kLayers,
                                      .num_kv_heads = shape.kv_heads,
                                      .head_dim = shape.head_dim,
                                      .page_tokens = shape.page_tokens,
                                      .num_pages = num_pages,
                                      .dtype = shape.dtype});
  EXPECT_TRUE(cache.ok()) << cache.status();
  std::vector<int32_t> ids(num_pages);
  std::iota(ids.begin(), ids.end(), 0);
  EXPECT_TRUE((*cache)->Poison(ids).ok());
  std::mt19937 rng(seed);
  std::shuffle(ids.begin(), ids.end(), rng);

  const int64_t q_size = shape.heads * shape.head_dim, kv_size = shape.kv_heads * shape.head_dim;
  const int64_t stride = q_size + 2 * kv_size;
  Arrays arrays(backend);
  std::vector<std::vector<int32_t>> pages(sequences.size());
  std::vector<SequenceSpan> spans, history;
  std::vector<float> batch;
  int64_t history_rows = 0;
  std::vector<float> before;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const AttentionSequence& s = sequences[i];
    const int64_t positions = s.first + s.rows;
    const int64_t count = (positions + shape.page_tokens - 1) / shape.page_tokens;
    pages[i].assign(ids.end() - count, ids.end());
    ids.resize(ids.size() - count);
    // The values of a sequence do not depend on where its rows lie in the batch.
    const std::vector<float> all =
        AttentionInputs(shape, s, static_cast<uint32_t>(i), positions, seed, value_scale);
    spans.push_back({static_cast<int32_t>(batch.size() / stride), s.rows, s.first, pages[i].data(),
                     static_cast<int32_t>(count)});
    batch.insert(batch.end(), all.begin() + s.first * stride, all.end());
    history.push_back({static_cast<int32_t>(history_rows), s.first, 0, pages[i].data(),
                       static_cast<int32_t>(count)});
    before.insert(before.end(), all.begin(), all.begin() + s.first * stride);
    history_rows += s.first;
  }
  const auto write = [&](const std::vector<float>& values, const std::vector<SequenceSpan>& where) {
    float* data = arrays.Put(values);
    const absl::Status status = backend.KvWrite({.cache = cache->get(),
                                                 .layer = kLayer,
                                                 .k = data + q_size,
                                                 .v = data + q_size + kv_size,
                                                 .row_stride = stride,
                                                 .spans = where});
    EXPECT_TRUE(status.ok()) << status;
    return data;
  };
  if (history_rows > 0) write(before, history);
  const float* data = write(batch, spans);
  float* y = arrays.Poisoned(rows * (q_size + 3));
  const auto attend = [&] {
    return backend.Attention({.mode = shape.mode,
                              .cache = cache->get(),
                              .layer = kLayer,
                              .q = data,
                              .q_stride = stride,
                              .y = y,
                              .y_stride = q_size + 3,
                              .num_heads = shape.heads,
                              .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                              .spans = spans});
  };
  absl::Status status;
  for (int i = 0; i < (shape.decode_rows > 0 ? 2 : 0); ++i) {
    status.Update(backend.RunDecode({.owner = &arrays,
                                     .mode = shape.mode,
                                     .cache = cache->get(),
                                     .num_heads = shape.heads,
                                     .rows = shape.decode_rows,
                                     .spans = spans},
                                    attend));
  }
  if (shape.decode_rows == 0) status = attend();
  EXPECT_TRUE(status.ok()) << status;
  return arrays.Get(y, rows * (q_size + 3));
}

}  // namespace verbatim::kernels::cuda

// Paged key/value cache and the operation that writes it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/ops/dtype.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

struct KvCacheConfig {
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t page_tokens = 32;  // positions per page: a divisor of 256 and a multiple of 16
  int64_t num_pages = 0;
  DType dtype = DType::kF32;  // kF32 or kBF16; bf16 rounds to nearest even when K and V are written
};

// Page memory; its layout is the backend's own affair.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual const KvCacheConfig& config() const = 0;
  virtual size_t size_bytes() const = 0;
  // Fills whole pages, all layers, with NaN: what tests do to show that nothing reads what it
  // should not.
  virtual absl::Status Poison(absl::Span<const int32_t> pages) = 0;
};

// A run of consecutive positions of one sequence inside a batch of token rows.
struct SequenceSpan {
  int32_t first_row = 0;  // row of the batch that holds first_position
  int32_t num_rows = 0;
  int32_t first_position = 0;
  const int32_t* pages = nullptr;  // page ids of positions 0, page_tokens, 2·page_tokens, …; covers
                                   // first_position + num_rows
  int32_t num_pages = 0;
};

// Writes K and V of every row of every span into the sequence's pages.
struct KvWriteParams {
  NumericMode mode;
  KvCache* cache = nullptr;
  int64_t layer = 0;
  const float* k = nullptr;  // [rows, num_kv_heads, head_dim], row stride `row_stride` elements
                             // (inside fused QKV)
  const float* v = nullptr;
  int64_t row_stride = 0;
  absl::Span<const SequenceSpan> spans;
};

}  // namespace verbatim::kernels

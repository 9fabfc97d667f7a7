// The paged key/value cache in host memory, and the operation that writes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/kv_cache.h"

namespace verbatim::kernels::cpu {

// Layout, outermost first: [layer][page][kv head]{K [head_dim][page_tokens], V
// [page_tokens][v_stride]}. K is transposed so that the scores of consecutive positions fill one
// vector; v_stride is head_dim rounded up to a multiple of 16, and the columns beyond head_dim are
// never used. Pages of one layer are neighbours, so that a layer's attention touches few huge
// pages.
class CpuKvCache final : public KvCache {
 public:
  // head_dim even and at most 256; page_tokens a divisor of 256 and a multiple of 16.
  // RESOURCE_EXHAUSTED when the memory cannot be had. Pages start with unspecified content.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const KvCacheConfig& config);

  ~CpuKvCache() override;
  CpuKvCache(const CpuKvCache&) = delete;
  CpuKvCache& operator=(const CpuKvCache&) = delete;

  const KvCacheConfig& config() const override { return config_; }
  size_t size_bytes() const override { return size_bytes_; }
  absl::Status Poison(absl::Span<const int32_t> pages) override;

  int64_t v_stride() const { return v_stride_; }            // elements
  int64_t head_elements() const { return head_elements_; }  // K and V of one page and head
  int64_t v_offset() const { return config_.head_dim * config_.page_tokens; }
  // First byte of K of (layer, page, kv head); V lies v_offset() elements behind it.
  std::byte* Head(int64_t layer, int64_t page, int64_t kv_head) const {
    const int64_t head = (layer * config_.num_pages + page) * config_.num_kv_heads + kv_head;
    return data_ + head * head_elements_ * element_bytes_;
  }

 private:
  CpuKvCache(const KvCacheConfig& config, size_t size_bytes, std::byte* data);

  KvCacheConfig config_;
  int64_t element_bytes_;
  int64_t v_stride_;
  int64_t head_elements_;
  size_t size_bytes_;
  std::byte* data_;
};

absl::Status KvWrite(const CpuContext& context, const KvWriteParams& params);

}  // namespace verbatim::kernels::cpu

// The paged key/value cache in device memory.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/launchers.h"
#include "kernels/ops/kv_cache.h"

namespace verbatim::kernels::cuda {

// Without data.
KvLayout LayoutOf(const KvCacheConfig& config);

class CudaKvCache final : public KvCache {
 public:
  // INVALID_ARGUMENT names the field of `config` that is wrong.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const KvCacheConfig& config,
                                                         Stream stream);

  const KvCacheConfig& config() const override { return config_; }
  size_t size_bytes() const override { return memory_->size_bytes(); }
  absl::Status Poison(absl::Span<const int32_t> pages) override;

  const KvLayout& layout() const { return layout_; }

 private:
  CudaKvCache(const KvCacheConfig& config, const KvLayout& layout,
              std::unique_ptr<DeviceBuffer> memory, Stream stream)
      : config_(config), layout_(layout), memory_(std::move(memory)), stream_(stream) {}

  const KvCacheConfig config_;
  const KvLayout layout_;
  const std::unique_ptr<DeviceBuffer> memory_;
  const Stream stream_;
};

}  // namespace verbatim::kernels::cuda

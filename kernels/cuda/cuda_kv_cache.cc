// Checks, allocation and poisoning of the cache.
#include "kernels/cuda/cuda_kv_cache.h"

#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cuda {

KvLayout LayoutOf(const KvCacheConfig& config) {
  return {.data = nullptr,
          .bf16 = config.dtype == DType::kBF16,
          .num_pages = config.num_pages,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .page_tokens = config.page_tokens};
}

absl::StatusOr<std::unique_ptr<KvCache>> CudaKvCache::Create(const KvCacheConfig& config,
                                                             Stream stream) {
  if (absl::Status status = CheckKvCacheConfig(config); !status.ok()) return status;
  KvLayout layout = LayoutOf(config);
  int64_t size = layout.head_elements() * layout.element_bytes();
  for (int64_t factor : {config.num_layers, config.num_pages, config.num_kv_heads}) {
    if (__builtin_mul_overflow(size, factor, &size)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("KV cache: ", config.num_pages, " pages exceed the address space"));
    }
  }
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> memory =
      DeviceBuffer::Create(static_cast<size_t>(size));
  if (!memory.ok()) {
    return absl::Status(memory.status().code(),
                        absl::StrCat("KV cache of ", config.num_pages,
                                     " pages: ", std::string(memory.status().message())));
  }
  layout.data = (*memory)->data();
  return std::unique_ptr<KvCache>(new CudaKvCache(config, layout, *std::move(memory), stream));
}

absl::Status CudaKvCache::Poison(absl::Span<const int32_t> pages) {
  for (int32_t page : pages) {
    if (page < 0 || page >= config_.num_pages) {
      return absl::InvalidArgumentError(absl::StrCat("KV cache: no page ", page));
    }
  }
  // All bits set is a quiet NaN in fp32 and in bf16.
  const int64_t page_bytes =
      layout_.num_kv_heads * layout_.head_elements() * layout_.element_bytes();
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    for (int32_t page : pages) {
      std::byte* start = static_cast<std::byte*>(layout_.data) +
                         layout_.HeadOffset(layer, page, 0) * layout_.element_bytes();
      absl::Status status = runtime::Fill(start, 0xff, static_cast<size_t>(page_bytes), stream_);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cuda

// The paged key/value cache in host memory, and the operation that writes it.
#include "kernels/cpu/kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/parallel.h"
#include "kernels/numerics/bf16.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// a · b, or -1 when it does not fit.
int64_t CheckedProduct(int64_t a, int64_t b) {
  int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) return -1;
  return product;
}

void Convert(float x, float* out) { *out = x; }
void Convert(float x, uint16_t* out) { *out = numerics::Bf16FromFloat(x); }

// Rows [begin, end) of a span that lie in one page.
template <class T>
void WriteRun(const KvWriteParams& params, const CpuKvCache& cache, const SequenceSpan& span,
              int64_t begin, int64_t end) {
  const KvCacheConfig& config = cache.config();
  const int64_t position = span.first_position + begin;
  const int64_t page = span.pages[position / config.page_tokens];
  const int64_t offset = position % config.page_tokens;
  const int64_t count = end - begin;
  for (int64_t head = 0; head < config.num_kv_heads; ++head) {
    T* k_page = reinterpret_cast<T*>(cache.Head(params.layer, page, head));
    T* v_page = k_page + cache.v_offset();
    const int64_t source = (span.first_row + begin) * params.row_stride + head * config.head_dim;
    const float* k = params.k + source;
    const float* v = params.v + source;
    for (int64_t d = 0; d < config.head_dim; ++d) {
      T* out = k_page + d * config.page_tokens + offset;
      for (int64_t i = 0; i < count; ++i) Convert(k[i * params.row_stride + d], out + i);
    }
    for (int64_t i = 0; i < count; ++i) {
      T* out = v_page + (offset + i) * cache.v_stride();
      for (int64_t d = 0; d < config.head_dim; ++d) Convert(v[i * params.row_stride + d], out + d);
    }
  }
}

// The rows of all spans that fall into [begin, end), counted span after span.
template <class T>
void WriteRows(const KvWriteParams& params, const CpuKvCache& cache, int64_t begin, int64_t end) {
  // Short runs keep the rows being transposed inside the first-level cache.
  constexpr int64_t kRunRows = 16;
  int64_t base = 0;
  for (const SequenceSpan& span : params.spans) {
    int64_t row = std::max<int64_t>(begin - base, 0);
    const int64_t last = std::min<int64_t>(end - base, span.num_rows);
    while (row < last) {
      const int64_t next = (span.first_position + row) / kRunRows * kRunRows + kRunRows;
      const int64_t stop = std::min(last, next - span.first_position);
      WriteRun<T>(params, cache, span, row, stop);
      row = stop;
    }
    base += span.num_rows;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvCache>> CpuKvCache::Create(const KvCacheConfig& config) {
  if (absl::Status status = CheckKvCacheConfig(config); !status.ok()) return status;
  const int64_t head_bytes = config.page_tokens * (config.head_dim + RoundUp(config.head_dim, 16)) *
                             (config.dtype == DType::kF32 ? 4 : 2);
  int64_t size = CheckedProduct(config.num_layers, config.num_pages);
  size = CheckedProduct(size, config.num_kv_heads);
  size = CheckedProduct(size, head_bytes);
  if (size < 0 || size > INT64_MAX - kHugePageBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache: ", config.num_pages, " pages exceed the address space"));
  }
  const size_t size_bytes = RoundUp(size, kHugePageBytes);
  void* data =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("KV cache: cannot allocate ", size_bytes,
                                                     " bytes for ", config.num_pages, " pages"));
  }
  // Best effort: attention walks pages in arbitrary order, which costs translation misses.
  madvise(data, size_bytes, MADV_HUGEPAGE);
  return std::unique_ptr<KvCache>(
      new CpuKvCache(config, size_bytes, static_cast<std::byte*>(data)));
}

CpuKvCache::CpuKvCache(const KvCacheConfig& config, size_t size_bytes, std::byte* data)
    : config_(config),
      element_bytes_(config.dtype == DType::kF32 ? 4 : 2),
      v_stride_(RoundUp(config.head_dim, 16)),
      head_elements_(config.page_tokens * (config.head_dim + v_stride_)),
      size_bytes_(size_bytes),
      data_(data) {}

CpuKvCache::~CpuKvCache() { munmap(data_, size_bytes_); }

absl::Status CpuKvCache::Poison(absl::Span<const int32_t> pages) {
  for (int32_t page : pages) {
    if (page < 0 || page >= config_.num_pages) {
      return absl::InvalidArgumentError(absl::StrCat("KV cache: no page ", page));
    }
  }
  // All bits set is a quiet NaN in fp32 and in bf16.
  const size_t page_bytes = config_.num_kv_heads * head_elements_ * element_bytes_;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    for (int32_t page : pages) memset(Head(layer, page, 0), 0xff, page_bytes);
  }
  return absl::OkStatus();
}

absl::Status KvWrite(const CpuContext& context, const KvWriteParams& params) {
  const auto* cache = dynamic_cast<const CpuKvCache*>(params.cache);
  if (cache == nullptr) {
    return absl::InvalidArgumentError("KvWrite: the cache is not one of this backend");
  }
  if (absl::Status status = CheckSpans(cache->config(), params.layer, params.spans); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("KvWrite: ", std::string(status.message())));
  }
  const int64_t row_elements = cache->config().num_kv_heads * cache->config().head_dim;
  int64_t rows = 0;
  for (const SequenceSpan& span : params.spans) rows += span.num_rows;
  if (rows == 0) return absl::OkStatus();
  if (params.k == nullptr || params.v == nullptr || params.row_stride < row_elements) {
    return absl::InvalidArgumentError(absl::StrCat("KvWrite: row_stride ", params.row_stride,
                                                   " is below a row's ", row_elements,
                                                   " elements, or k or v is missing"));
  }
  // Transposing K touches a cache line an element.
  ParallelRows(context, rows, 2 * row_elements, kMinElementsPerThread / 4,
               [&](int64_t begin, int64_t end) {
                 if (cache->config().dtype == DType::kF32) {
                   WriteRows<float>(params, *cache, begin, end);
                 } else {
                   WriteRows<uint16_t>(params, *cache, begin, end);
                 }
               });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

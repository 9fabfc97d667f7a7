// Writing and reading the paged cache: what its kernels are told about spans, and their launches.
#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_kv_cache.h"
#include "kernels/cuda/launchers.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cuda {
namespace {

// Where the tables of attention lie in their buffer. The pages, the only ones whose number is not
// the same in all decode steps of as many rows, come last.
struct TablePlaces {
  explicit TablePlaces(const AttentionTables& tables) {
    const auto behind = [](size_t start, size_t size_bytes) {
      return start + (size_bytes + 255) / 256 * 256;
    };
    cuts = behind(0, tables.tiles.size() * sizeof(AttentionTile));
    pages = behind(cuts, tables.row_cuts.size() * sizeof(int32_t));
    end = pages + tables.pages.size() * sizeof(int32_t);
  }
  static constexpr size_t kTiles = 0;
  size_t cuts, pages, end;
};

int64_t PartialRowBytes(int64_t num_heads, const KvCacheConfig& config) {
  return num_heads * (config.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

// What the tables of attention depend on beside the spans: page size, heads, the width of a partial
// and the length of cuts.
bool Known(SpanMemory& memory, absl::Span<const SequenceSpan> spans, const KvCacheConfig& config,
           int64_t num_heads, bool mma, int64_t cut_length) {
  const int64_t heads_per_kv = num_heads / config.num_kv_heads;
  return memory.SameAsBefore(
      spans, (config.page_tokens << 32 | heads_per_kv) << 1 | static_cast<int64_t>(mma),
      mma ? PartialRowBytes(num_heads, config) * 2 + (cut_length == kShortCutLength ? 1 : 0) : 0);
}

bool OnMatrixUnits(const NumericMode& mode, const KvLayout& layout) {
  return mode.policy != Policy::kPortable && AttentionOnMatrixUnits(layout);
}

absl::Status OtherSpans(const char* operation) {
  return absl::InvalidArgumentError(
      absl::StrCat(operation, ": spans, heads or policy are not those of the decode step"));
}

}  // namespace

int64_t CudaBackend::MaxRowCuts(const KvCacheConfig& config, int64_t num_heads) const {
  return static_cast<int64_t>(workspace_->size_bytes()) / PartialRowBytes(num_heads, config);
}

int64_t CudaBackend::AttentionCutLength(const NumericMode& mode, const KvCacheConfig& config,
                                        int64_t num_heads,
                                        absl::Span<const SequenceSpan> spans) const {
  if (mode.policy != Policy::kThroughput || !OnMatrixUnits(mode, LayoutOf(config))) {
    return kCutLength;
  }
  return ThroughputCutLength(config, num_heads / config.num_kv_heads, spans,
                             MaxRowCuts(config, num_heads), info_.multiprocessors);
}

// The strong policies cut where the contract does, and so does THROUGHPUT unless short cuts pay.
std::vector<AttentionCut> CudaBackend::AttentionCuts(const NumericMode& mode,
                                                     const KvCacheConfig& cache, int64_t num_heads,
                                                     absl::Span<const SequenceSpan> spans) const {
  const int64_t cut_length = AttentionCutLength(mode, cache, num_heads, spans);
  if (cut_length == kCutLength) return {};
  return SplitCuts(cache, num_heads / cache.num_kv_heads, spans, cut_length);
}

absl::Status CudaBackend::UploadKvRows() {
  const size_t size_bytes = kv_rows_.size() * sizeof(KvRow);
  absl::Status status =
      size_bytes > kv_tables_->size_bytes()
          ? absl::ResourceExhaustedError(
                absl::StrCat("KvWrite: a batch of ", kv_rows_.size(), " rows needs ", size_bytes,
                             " bytes of tables; table_bytes is ", kv_tables_->size_bytes()))
          : uploader_->Upload(kv_tables_->data(), kv_rows_.data(), size_bytes);
  if (!status.ok()) kv_spans_.Forget();
  return status;
}

absl::Status CudaBackend::UploadAttentionTables() {
  const TablePlaces places(tables_);
  absl::Status status;
  if (places.end > attention_tables_->size_bytes()) {
    status = absl::ResourceExhaustedError(absl::StrCat("Attention: page tables need ", places.end,
                                                       " bytes; table_bytes is ",
                                                       attention_tables_->size_bytes()));
  } else {
    table_bytes_.resize(places.end);
    const auto put = [&](size_t at, const auto& values) {
      if (!values.empty()) {
        std::memcpy(table_bytes_.data() + at, values.data(), values.size() * sizeof(values[0]));
      }
    };
    put(TablePlaces::kTiles, tables_.tiles);
    put(places.cuts, tables_.row_cuts);
    put(places.pages, tables_.pages);
    status = uploader_->Upload(attention_tables_->data(), table_bytes_.data(), places.end);
  }
  if (!status.ok()) attention_spans_.Forget();
  return status;
}

DecodeCuts CudaBackend::CutsOf(const DecodeStep& step, const KvCacheConfig& config,
                               int64_t cut_length) const {
  return DecodeCutsOf(step.num_heads / config.num_kv_heads, step.spans, step.rows,
                      OnMatrixUnits(step.mode, LayoutOf(config)),
                      MaxRowCuts(config, step.num_heads), cut_length);
}

absl::Status CudaBackend::UploadStepTables(const DecodeStep& step, const CudaKvCache& cache) {
  const KvCacheConfig& config = cache.config();
  const bool mma = OnMatrixUnits(step.mode, cache.layout());
  kv_spans_.SameAsBefore(step.spans, config.page_tokens);
  const int64_t cut_length = AttentionCutLength(step.mode, config, step.num_heads, step.spans);
  Known(attention_spans_, step.spans, config, step.num_heads, mma, cut_length);
  BuildKvRows(config, step.spans, &kv_rows_);
  kv_rows_.resize(static_cast<size_t>(step.rows), KvRow{.row = 0, .page = -1, .offset = 0});
  BuildDecodeTables(config, step.num_heads / config.num_kv_heads, step.spans, step.rows, mma,
                    MaxRowCuts(config, step.num_heads), cut_length, &tables_);
  if (absl::Status status = UploadKvRows(); !status.ok()) return status;
  return UploadAttentionTables();
}

absl::Status CudaBackend::KvWrite(const KvWriteParams& params) {
  const auto* cache = dynamic_cast<const CudaKvCache*>(params.cache);
  if (cache == nullptr) {
    return absl::InvalidArgumentError("KvWrite: the cache is not one of this backend");
  }
  const KvCacheConfig& config = cache->config();
  if (absl::Status status = CheckSpans(config, params.layer, params.spans); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("KvWrite: ", std::string(status.message())));
  }
  if (!kv_spans_.SameAsBefore(params.spans, config.page_tokens)) {
    if (in_step_) return OtherSpans("KvWrite");
    BuildKvRows(config, params.spans, &kv_rows_);
    if (absl::Status status = UploadKvRows(); !status.ok()) return status;
  }
  if (kv_rows_.empty()) return absl::OkStatus();
  const int64_t row_elements = config.num_kv_heads * config.head_dim;
  if (params.k == nullptr || params.v == nullptr || params.row_stride < row_elements) {
    return absl::InvalidArgumentError(absl::StrCat("KvWrite: row_stride ", params.row_stride,
                                                   " is below a row's ", row_elements,
                                                   " elements, or k or v is missing"));
  }
  return runtime::LaunchStatus("KvWrite",
                               LaunchKvWrite({.layout = cache->layout(),
                                              .layer = params.layer,
                                              .k = params.k,
                                              .v = params.v,
                                              .row_stride = params.row_stride,
                                              .rows = static_cast<const KvRow*>(kv_tables_->data()),
                                              .num_rows = static_cast<int64_t>(kv_rows_.size())},
                                             stream_));
}

absl::Status CudaBackend::Attention(const AttentionParams& params) {
  if (std::all_of(params.spans.begin(), params.spans.end(),
                  [](const SequenceSpan& span) { return span.num_rows == 0; })) {
    return absl::OkStatus();
  }
  const auto* cache = dynamic_cast<const CudaKvCache*>(params.cache);
  if (cache == nullptr) {
    return absl::InvalidArgumentError("Attention: the cache is not one of this backend");
  }
  const KvCacheConfig& config = cache->config();
  if (absl::Status status = CheckAttention(params, config); !status.ok()) return status;
  const int64_t heads_per_kv = params.num_heads / config.num_kv_heads;
  const bool mma = OnMatrixUnits(params.mode, cache->layout());
  const int64_t partial_row_bytes = PartialRowBytes(params.num_heads, config);
  const int64_t cut_length =
      AttentionCutLength(params.mode, config, params.num_heads, params.spans);
  if (!Known(attention_spans_, params.spans, config, params.num_heads, mma, cut_length)) {
    if (in_step_) return OtherSpans("Attention");
    if (mma) {
      BuildAttentionMmaTables(config, heads_per_kv, params.spans,
                              MaxRowCuts(config, params.num_heads), cut_length, &tables_);
    } else {
      BuildAttentionTables(config, heads_per_kv, params.spans, &tables_);
    }
    if (absl::Status status = UploadAttentionTables(); !status.ok()) return status;
  }
  const TablePlaces places(tables_);
  const char* const memory = static_cast<const char*>(attention_tables_->data());
  AttentionArgs args{
      .layout = cache->layout(),
      .layer = params.layer,
      .q = params.q,
      .q_stride = params.q_stride,
      .y = params.y,
      .y_stride = params.y_stride,
      .num_heads = params.num_heads,
      .heads_per_kv = heads_per_kv,
      .scale = params.scale,
      .tiles = reinterpret_cast<const AttentionTile*>(memory + TablePlaces::kTiles),
      .num_tiles = static_cast<int64_t>(tables_.tiles.size()),
      .tile_queries = tables_.tile_queries,
      .pages = reinterpret_cast<const int32_t*>(memory + places.pages),
      .partials = nullptr,
      .max_cuts = tables_.max_cuts,
      .row_cuts = reinterpret_cast<const int32_t*>(memory + places.cuts),
      .cut_length = tables_.cut_length,
      .batch_rows = static_cast<int64_t>(tables_.row_cuts.size()),
      .round = !IsStrong(params.mode.policy) && params.mode.activations == ActivationType::kBF16};
  float* const partials = static_cast<float*>(workspace_->data());
  if (mma) {
    AttentionArgs walk = args;
    args.num_tiles = tables_.split_tiles;
    walk.num_tiles -= tables_.split_tiles;
    walk.tiles += tables_.split_tiles;
    walk.max_cuts = tables_.max_walk_cuts;
    if (args.max_cuts > 1) args.partials = partials;
    absl::Status status;
    if (args.num_tiles > 0) {
      status = runtime::LaunchStatus("Attention", LaunchAttentionMmaSplit(args, stream_));
    }
    if (status.ok() && walk.num_tiles > 0) {
      status = runtime::LaunchStatus("Attention", LaunchAttentionMmaWalk(walk, stream_));
    }
    return status;
  }
  // Cuts get blocks of their own where tiles alone would not fill the device; the bits do not
  // depend on it.
  const size_t partial_bytes =
      static_cast<size_t>(args.batch_rows * args.max_cuts * partial_row_bytes);
  if (args.max_cuts > 1 && partial_bytes <= workspace_->size_bytes() &&
      args.num_tiles * config.num_kv_heads < 2 * info_.multiprocessors) {
    args.partials = partials;
  }
  return runtime::LaunchStatus("Attention", LaunchAttention(args, stream_));
}

}  // namespace verbatim::kernels::cuda

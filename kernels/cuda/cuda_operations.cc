// The operations: checks of shapes, then the launchers.
#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_kv_cache.h"
#include "kernels/cuda/launchers.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cuda {
namespace {

bool Rounds(const NumericMode& mode) {
  return !IsStrong(mode.policy) && mode.activations == ActivationType::kBF16;
}

// Whether a product is one of fp32 values in the tree's order. In THROUGHPUT too where fp32 is
// asked for and stored: a router's logits decide more than a rounding.
bool InTree(const NumericMode& mode, const CudaMatrix& weight) {
  if (mode.policy == Policy::kPortable) return true;
  return mode.policy == Policy::kThroughput && mode.activations == ActivationType::kF32 &&
         std::all_of(weight.parts().begin(), weight.parts().end(),
                     [](const PackedPart& part) { return part.format == DType::kF32; });
}

// Offset of the next array in a table buffer, and its end.
struct TableSpace {
  size_t used = 0;
  size_t Take(size_t size_bytes) {
    const size_t start = used;
    used += (size_bytes + 255) / 256 * 256;
    return start;
  }
};

}  // namespace

absl::Status CudaBackend::Embedding(const EmbeddingParams& params) {
  const auto* table = dynamic_cast<const CudaMatrix*>(params.table);
  if (table == nullptr || !table->load_options().for_embedding) {
    return absl::InvalidArgumentError(
        "Embedding: the table is not a matrix that this backend loaded for embedding");
  }
  if (params.num_tokens < 0 || params.num_tokens > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("Embedding: num_tokens ", params.num_tokens));
  }
  if (params.num_tokens == 0) return absl::OkStatus();
  if (absl::Status status = Enter(); !status.ok()) return status;
  if (params.tokens == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError("Embedding: tokens or y is missing");
  }
  return runtime::LaunchStatus(
      "Embedding", LaunchEmbedding({.parts = table->parts().data(),
                                    .num_parts = static_cast<int>(table->parts().size()),
                                    .vocab = table->rows(),
                                    .cols = table->cols(),
                                    .tokens = params.tokens,
                                    .num_tokens = params.num_tokens,
                                    .scale = params.scale,
                                    .y = params.y,
                                    .round = Rounds(params.mode),
                                    .fault = fault()},
                                   stream_));
}

absl::Status CudaBackend::RmsNorm(const RmsNormParams& params) {
  if (absl::Status status = CheckRmsNorm(params); !status.ok()) return status;
  if (params.rows == 0 || params.groups == 0) return absl::OkStatus();
  return runtime::LaunchStatus("RmsNorm", LaunchRmsNorm({.x = params.x,
                                                         .x_stride = params.x_stride,
                                                         .y = params.y,
                                                         .y_stride = params.y_stride,
                                                         .weight = params.weight,
                                                         .rows = params.rows,
                                                         .groups = params.groups,
                                                         .cols = params.cols,
                                                         .eps = params.eps,
                                                         .round = Rounds(params.mode)},
                                                        stream_));
}

absl::Status CudaBackend::Gemm(const GemmParams& params) {
  const auto* weight = dynamic_cast<const CudaMatrix*>(params.weight);
  if (weight == nullptr || !weight->load_options().for_gemm) {
    return absl::InvalidArgumentError(
        "Gemm: the weight is not a matrix that this backend loaded for products");
  }
  if (params.tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat("Gemm: tokens ", params.tokens));
  }
  if (params.tokens == 0) return absl::OkStatus();
  if (params.x == nullptr || params.y == nullptr ||
      (params.tokens > 1 &&
       (params.x_stride < weight->cols() || params.y_stride < weight->rows()))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Gemm: x_stride ", params.x_stride, " is below ", weight->cols(), " columns or y_stride ",
        params.y_stride, " below ", weight->rows(), " rows, or x or y is missing"));
  }
  if (absl::Status status = CheckPolicy("Gemm", params.mode.policy); !status.ok()) return status;
  const bool round = Rounds(params.mode) && params.round_output;
  if (!InTree(params.mode, *weight)) return GemmOnMatrixUnits(params, *weight, round);
  for (const PackedPart& part : weight->parts()) {
    absl::Status status =
        runtime::LaunchStatus("Gemm", LaunchGemmPortable({.part = part,
                                                          .tokens = params.tokens,
                                                          .x = params.x,
                                                          .x_stride = params.x_stride,
                                                          .y = params.y,
                                                          .y_stride = params.y_stride,
                                                          .bias = params.bias,
                                                          .residual = params.residual,
                                                          .round = round,
                                                          .multiprocessors = info_.multiprocessors},
                                                         stream_));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::string CudaBackend::GemmKernel(const NumericMode& mode, const WeightMatrix& weight,
                                    int64_t) const {
  const auto* matrix = dynamic_cast<const CudaMatrix*>(&weight);
  return matrix != nullptr && InTree(mode, *matrix) ? "cuda tree" : "cuda mma shards";
}

// Every policy cuts where the contract does.
std::vector<AttentionCut> CudaBackend::AttentionCuts(const NumericMode&, const KvCacheConfig&,
                                                     int64_t,
                                                     absl::Span<const SequenceSpan>) const {
  return {};
}

absl::Status CudaBackend::GemmOnMatrixUnits(const GemmParams& params, const CudaMatrix& weight,
                                            bool round) {
  // As many tokens at a time as the workspace holds; slices change no bits.
  const int64_t row_bytes = RowPitch(weight.cols()) * 2;
  const int64_t slice =
      std::min(params.tokens, static_cast<int64_t>(workspace_->size_bytes()) / row_bytes);
  if (slice == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("Gemm: ", weight.cols(), " columns need ", row_bytes,
                     " bytes of workspace; workspace_bytes is ", workspace_->size_bytes()));
  }
  char* const rounded = static_cast<char*>(workspace_->data());
  for (int64_t first = 0; first < params.tokens; first += slice) {
    const int64_t tokens = std::min(slice, params.tokens - first);
    const size_t rounded_bytes = static_cast<size_t>(tokens * row_bytes);
    const int64_t offset = first * params.y_stride;
    RoundRowsArgs rounding{.x = params.x + first * params.x_stride,
                           .x_stride = params.x_stride,
                           .num_rows = tokens,
                           .cols = weight.cols(),
                           .rounded = rounded};
    rounding.places.x_rows = tokens;
    absl::Status status = runtime::LaunchStatus("Gemm", LaunchRoundRows(rounding, stream_));
    if (!status.ok()) return status;
    status = runtime::LaunchStatus(
        "Gemm", pinned_form_->Launch(
                    {.part = weight.bf16(),
                     .tokens = tokens,
                     .rounded_x = rounded,
                     .y = params.y + offset,
                     .y_stride = params.y_stride,
                     .bias = params.bias,
                     .residual = params.residual == nullptr ? nullptr : params.residual + offset,
                     .round = round,
                     .partials = reinterpret_cast<float*>(rounded + rounded_bytes),
                     .partial_bytes = workspace_->size_bytes() - rounded_bytes,
                     .multiprocessors = info_.multiprocessors,
                     .shard_depth = weight.load_options().shard_depth},
                    stream_));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Rope(const RopeParams& params) {
  if (params.tokens < 0 || params.num_heads < 0 || params.num_kv_heads < 0 || params.head_dim < 2 ||
      params.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Rope: tokens ", params.tokens, ", num_heads ", params.num_heads, ", num_kv_heads ",
        params.num_kv_heads, ", head_dim ", params.head_dim, " (must be even)"));
  }
  const int64_t heads = params.num_heads + params.num_kv_heads;
  if (params.tokens == 0 || heads == 0) return absl::OkStatus();
  if (params.qkv == nullptr || params.positions == nullptr || params.cos_table == nullptr ||
      params.sin_table == nullptr || params.row_stride < heads * params.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Rope: row_stride ", params.row_stride, " is below the ", heads * params.head_dim,
        " elements of query and key heads, or an array is missing"));
  }
  return runtime::LaunchStatus("Rope", LaunchRope({.qkv = params.qkv,
                                                   .row_stride = params.row_stride,
                                                   .tokens = params.tokens,
                                                   .heads = heads,
                                                   .head_dim = params.head_dim,
                                                   .interleaved = params.interleaved,
                                                   .positions = params.positions,
                                                   .cos_table = params.cos_table,
                                                   .sin_table = params.sin_table,
                                                   .fault = fault()},
                                                  stream_));
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
    BuildKvRows(config, params.spans, &kv_rows_);
    const size_t size_bytes = kv_rows_.size() * sizeof(KvRow);
    absl::Status status =
        size_bytes > kv_tables_->size_bytes()
            ? absl::ResourceExhaustedError(
                  absl::StrCat("KvWrite: a batch of ", kv_rows_.size(), " rows needs ", size_bytes,
                               " bytes of tables; table_bytes is ", kv_tables_->size_bytes()))
            : uploader_->Upload(kv_tables_->data(), kv_rows_.data(), size_bytes);
    if (!status.ok()) {
      kv_spans_.Forget();
      return status;
    }
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
  TableSpace space;
  const bool mma =
      params.mode.policy != Policy::kPortable && AttentionOnMatrixUnits(cache->layout());
  const int64_t partial_row_bytes =
      params.num_heads * (config.head_dim + 2) * static_cast<int64_t>(sizeof(float));
  // What the tables depend on beside the spans: page size, heads, and the width of a partial.
  const bool known = attention_spans_.SameAsBefore(
      params.spans, (config.page_tokens << 32 | heads_per_kv) << 1 | static_cast<int64_t>(mma),
      mma ? partial_row_bytes : 0);
  if (!known) {
    if (mma) {
      BuildAttentionMmaTables(config, heads_per_kv, params.spans,
                              static_cast<int64_t>(workspace_->size_bytes()) / partial_row_bytes,
                              &tables_);
    } else {
      BuildAttentionTables(config, heads_per_kv, params.spans, &tables_);
    }
  }
  const size_t tiles_bytes = tables_.tiles.size() * sizeof(AttentionTile);
  const size_t pages_bytes = tables_.pages.size() * sizeof(int32_t);
  const size_t cuts_bytes = tables_.row_cuts.size() * sizeof(int32_t);
  const size_t tiles_at = space.Take(tiles_bytes);
  const size_t pages_at = space.Take(pages_bytes);
  const size_t cuts_at = space.Take(cuts_bytes);
  char* const memory = static_cast<char*>(attention_tables_->data());
  if (!known) {
    absl::Status status;
    if (space.used > attention_tables_->size_bytes()) {
      status = absl::ResourceExhaustedError(absl::StrCat("Attention: page tables need ", space.used,
                                                         " bytes; table_bytes is ",
                                                         attention_tables_->size_bytes()));
    }
    if (status.ok()) {
      status = uploader_->Upload(memory + tiles_at, tables_.tiles.data(), tiles_bytes);
    }
    if (status.ok()) {
      status = uploader_->Upload(memory + pages_at, tables_.pages.data(), pages_bytes);
    }
    if (status.ok()) {
      status = uploader_->Upload(memory + cuts_at, tables_.row_cuts.data(), cuts_bytes);
    }
    if (!status.ok()) {
      attention_spans_.Forget();
      return status;
    }
  }
  AttentionArgs args{.layout = cache->layout(),
                     .layer = params.layer,
                     .q = params.q,
                     .q_stride = params.q_stride,
                     .y = params.y,
                     .y_stride = params.y_stride,
                     .num_heads = params.num_heads,
                     .heads_per_kv = heads_per_kv,
                     .scale = params.scale,
                     .tiles = reinterpret_cast<const AttentionTile*>(memory + tiles_at),
                     .num_tiles = static_cast<int64_t>(tables_.tiles.size()),
                     .tile_queries = tables_.tile_queries,
                     .pages = reinterpret_cast<const int32_t*>(memory + pages_at),
                     .partials = nullptr,
                     .max_cuts = tables_.max_cuts,
                     .row_cuts = reinterpret_cast<const int32_t*>(memory + cuts_at),
                     .batch_rows = static_cast<int64_t>(tables_.row_cuts.size()),
                     .round = Rounds(params.mode)};
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

absl::Status CudaBackend::SwiGlu(const SwiGluParams& params) {
  if (absl::Status status = CheckSwiGlu(params); !status.ok()) return status;
  if (params.tokens == 0) return absl::OkStatus();
  return runtime::LaunchStatus("SwiGlu", LaunchSwiGlu({.gate_up = params.gate_up,
                                                       .y = params.y,
                                                       .tokens = params.tokens,
                                                       .cols = params.cols,
                                                       .round = Rounds(params.mode)},
                                                      stream_));
}

absl::Status CudaBackend::GatherRows(const GatherRowsParams& params) {
  if (params.rows < 0 || params.cols < 1 || params.num_rows < 0 ||
      params.num_rows > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("GatherRows: rows ", params.rows, ", cols ",
                                                   params.cols, ", num_rows ", params.num_rows));
  }
  if (params.num_rows == 0) return absl::OkStatus();
  if (params.x == nullptr || params.y == nullptr || params.index == nullptr) {
    return absl::InvalidArgumentError("GatherRows: x, y or index is missing");
  }
  return runtime::LaunchStatus("GatherRows", LaunchGatherRows({.x = params.x,
                                                               .rows = params.rows,
                                                               .cols = params.cols,
                                                               .index = params.index,
                                                               .num_rows = params.num_rows,
                                                               .y = params.y,
                                                               .fault = fault()},
                                                              stream_));
}

absl::Status CudaBackend::TreeSum(const TreeSumParams& params) {
  if (absl::Status status = CheckTreeSum(params); !status.ok()) return status;
  if (params.count == 0) return absl::OkStatus();
  TreeSumArgs args = {.num_parts = static_cast<int>(params.parts.size()),
                      .count = params.count,
                      .residual = params.residual,
                      .y = params.y,
                      .round = params.round_output && Rounds(params.mode)};
  std::copy(params.parts.begin(), params.parts.end(), args.parts);
  return runtime::LaunchStatus("TreeSum", LaunchTreeSum(args, stream_));
}

absl::Status CudaBackend::Sample(const SamplingParams& params) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  if (absl::Status status = sampler_->Sample(params); !status.ok()) {
    return pinned_form_->Explained(status);
  }
  return TakeFault();
}

}  // namespace verbatim::kernels::cuda

// The operations: checks of shapes, then the launchers.
#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
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
                                    int64_t tokens) const {
  const auto* matrix = dynamic_cast<const CudaMatrix*>(&weight);
  if (matrix == nullptr) return "none";
  return InTree(mode, *matrix) ? "cuda tree" : KernelOnMatrixUnits(mode.policy, *matrix, tokens);
}

absl::Status CudaBackend::GemmOnMatrixUnits(const GemmParams& params, const CudaMatrix& weight,
                                            bool round) {
  // Slices change no bits of PINNED.
  const int64_t row_bytes = RowPitch(weight.cols()) * 2;
  const int64_t slice = SliceTokens(params.tokens, weight);
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
    const absl::StatusOr<bool> by_library =
        GemmByLibrary(params, weight, first, tokens, rounded, round);
    if (!by_library.ok()) return by_library.status();
    if (*by_library) continue;
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
  if (params.rows.empty()) return TakeFault();
  uint32_t faults = 0;
  if (absl::Status status = sampler_->Sample(params, fault(), &faults); !status.ok()) {
    return pinned_form_->Explained(status);
  }
  return FaultStatus(faults);
}

}  // namespace verbatim::kernels::cuda

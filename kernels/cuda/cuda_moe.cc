// Mixture of experts on the GPU: checks of shapes, then the launchers.
#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launchers.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cuda {
namespace {

absl::Status CheckShape(const char* operation, int64_t tokens, int64_t num_experts, int64_t top_k) {
  absl::Status status = CheckExperts(operation, num_experts, top_k);
  if (!status.ok()) return status;
  if (tokens < 0 || tokens > std::numeric_limits<int32_t>::max() / top_k) {
    return absl::InvalidArgumentError(absl::StrCat(operation, ": tokens ", tokens));
  }
  return absl::OkStatus();
}

// Places of one launch: as many as a grid's second dimension has tiles for.
constexpr int64_t kMostPlaces = int64_t{1} << 21;

}  // namespace

absl::Status CudaBackend::MoeRoute(const MoeRouteParams& params) {
  if (absl::Status status = CheckShape("MoeRoute", params.tokens, params.num_experts, params.top_k);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckMoeRoute(params); !status.ok()) return status;
  if (params.tokens == 0) return absl::OkStatus();
  return runtime::LaunchStatus("MoeRoute",
                               LaunchMoeRoute({.logits = params.logits,
                                               .tokens = params.tokens,
                                               .num_experts = params.num_experts,
                                               .top_k = params.top_k,
                                               .normalise = params.normalise,
                                               .scale = params.scale,
                                               .capacity = params.capacity,
                                               .next = params.overflow == CapacityOverflow::kNext,
                                               .exempt = params.exempt,
                                               .limits = params.limits,
                                               .experts = params.experts,
                                               .wanted = params.wanted,
                                               .weights = params.weights},
                                              stream_));
}

absl::Status CudaBackend::MoePermute(const MoePermuteParams& params) {
  if (absl::Status status =
          CheckShape("MoePermute", params.tokens, params.num_experts, params.top_k);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckMoePermute(params); !status.ok()) return status;
  return runtime::LaunchStatus("MoePermute", LaunchMoePermute({.experts = params.experts,
                                                               .tokens = params.tokens,
                                                               .num_experts = params.num_experts,
                                                               .top_k = params.top_k,
                                                               .offsets = params.offsets,
                                                               .token_of = params.token_of,
                                                               .place_of = params.place_of,
                                                               .totals = params.totals,
                                                               .wanted = params.wanted,
                                                               .limits = params.limits,
                                                               .fault = fault()},
                                                              stream_));
}

absl::Status CudaBackend::MoeCombine(const MoeCombineParams& params) {
  if (absl::Status status = CheckShape("MoeCombine", params.tokens, kMaxExperts, params.top_k);
      !status.ok()) {
    return status;
  }
  if (params.cols < 1) {
    return absl::InvalidArgumentError(absl::StrCat("MoeCombine: cols is ", params.cols));
  }
  if (params.tokens == 0) return absl::OkStatus();
  if (params.expert_rows == nullptr || params.place_of == nullptr || params.weights == nullptr ||
      params.residual == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError(
        "MoeCombine: expert_rows, place_of, weights, residual or y is missing");
  }
  if (params.shared_gate != nullptr && params.shared == nullptr) {
    return absl::InvalidArgumentError("MoeCombine: shared_gate without shared");
  }
  const bool round = !IsStrong(params.mode.policy) &&
                     params.mode.activations == ActivationType::kBF16 && params.round_output;
  return runtime::LaunchStatus("MoeCombine", LaunchMoeCombine({.expert_rows = params.expert_rows,
                                                               .place_of = params.place_of,
                                                               .weights = params.weights,
                                                               .tokens = params.tokens,
                                                               .top_k = params.top_k,
                                                               .cols = params.cols,
                                                               .shared = params.shared,
                                                               .shared_gate = params.shared_gate,
                                                               .residual = params.residual,
                                                               .y = params.y,
                                                               .round = round,
                                                               .fault = fault()},
                                                              stream_));
}

absl::Status CudaBackend::GroupedGemm(const GroupedGemmParams& params) {
  const bool portable = params.mode.policy == Policy::kPortable;
  absl::Status status = CheckPolicy("GroupedGemm", params.mode.policy);
  if (!status.ok()) return status;
  absl::StatusOr<const ExpertWeights*> weights = expert_tables_->Of(params.weights, !portable);
  if (!weights.ok()) return weights.status();
  const int64_t n = (*weights)->rows, k = (*weights)->cols;
  if (params.max_places < 0 || params.max_places > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("GroupedGemm: max_places ", params.max_places));
  }
  if (params.max_places == 0) return absl::OkStatus();
  if (params.offsets == nullptr || params.x == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError("GroupedGemm: offsets, x or y is missing");
  }
  if (params.x_rows < 1 || params.x_rows > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("GroupedGemm: x_rows ", params.x_rows));
  }
  if ((params.x_rows > 1 && params.x_stride < k) ||
      (params.max_places > 1 && params.y_stride < n)) {
    return absl::InvalidArgumentError(absl::StrCat("GroupedGemm: x_stride ", params.x_stride,
                                                   " is below ", k, " columns or y_stride ",
                                                   params.y_stride, " below ", n, " rows"));
  }
  GroupedGemmArgs args{};
  args.places = {.offsets = params.offsets,
                 .num_experts = static_cast<int64_t>(params.weights.size()),
                 .begin = 0,
                 .end = 0,
                 .max_places = params.max_places,
                 .rows = params.rows,
                 .x_rows = params.x_rows,
                 .fault = fault()};
  args.cols = k;
  args.shard_depth = (*weights)->shard_depth;
  args.y = params.y;
  args.y_stride = params.y_stride;
  args.round = !IsStrong(params.mode.policy) && params.mode.activations == ActivationType::kBF16 &&
               params.round_output;
  if (!portable) return GroupedGemmOnMatrixUnits(params, args, (*weights)->tables);
  args.x = params.x;
  args.x_stride = params.x_stride;
  for (int64_t first = 0; first < params.max_places; first += kMostPlaces) {
    args.places.begin = first;
    args.places.end = std::min(first + kMostPlaces, params.max_places);
    for (const ExpertParts& table : (*weights)->tables) {
      args.format = table.format;
      args.parts = table.parts;
      args.most_rows = table.most_rows;
      status = runtime::LaunchStatus("GroupedGemm", LaunchGroupedGemmPortable(args, stream_));
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::GroupedGemmOnMatrixUnits(const GroupedGemmParams& params,
                                                   GroupedGemmArgs args,
                                                   absl::Span<const ExpertParts> tables) {
  const auto use = [&](const ExpertParts& table) {
    args.format = table.format;
    args.parts = table.parts;
    args.maps = table.maps;
    args.most_rows = table.most_rows;
  };
  args.rounded_x = workspace_->data();
  // All rows of x as bf16 at once where the workspace holds them; otherwise, and where warpgroups
  // want an expert's rows one after the other, place by place, in slices. Neither changes bits.
  const int64_t row_bytes = RowPitch(args.cols) * 2;
  const int64_t room = static_cast<int64_t>(workspace_->size_bytes()) / row_bytes;
  bool whole = params.x_rows <= room;
  if (params.rows != nullptr) {
    use(tables.front());
    GroupedGemmArgs gathered = args;
    gathered.places.end = gathered.places.x_rows = params.max_places;
    gathered.places.rows = nullptr;
    whole = whole && !pinned_form_->IsByWgmma(gathered);
  }
  const int64_t slice = std::min(kMostPlaces, whole ? params.max_places : room);
  if (slice == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("GroupedGemm: ", args.cols, " columns need ", row_bytes,
                     " bytes of workspace; workspace_bytes is ", workspace_->size_bytes()));
  }
  RoundRowsArgs rounding{.places = args.places,
                         .x = params.x,
                         .x_stride = params.x_stride,
                         .first_row = 0,
                         .num_rows = params.x_rows,
                         .cols = args.cols,
                         .rounded = workspace_->data()};
  absl::Status status;
  if (whole) {
    rounding.places.rows = nullptr;
    status = runtime::LaunchStatus("GroupedGemm", LaunchRoundRows(rounding, stream_));
  } else if (params.rows != nullptr) {
    args.places.rows = nullptr;  // gathered by the rounding
    args.places.x_rows = params.max_places;
  }
  for (int64_t first = 0; first < params.max_places && status.ok(); first += slice) {
    args.places.begin = first;
    args.places.end = std::min(first + slice, params.max_places);
    if (!whole) {
      rounding.first_row = args.rounded_first = first;
      rounding.num_rows = args.places.end - first;
      status = runtime::LaunchStatus("GroupedGemm", LaunchRoundRows(rounding, stream_));
    }
    for (const ExpertParts& table : tables) {
      if (!status.ok()) return status;
      use(table);
      status = runtime::LaunchStatus("GroupedGemm", pinned_form_->Launch(args, stream_));
    }
  }
  return status;
}

}  // namespace verbatim::kernels::cuda

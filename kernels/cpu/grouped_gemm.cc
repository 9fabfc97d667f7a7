// Checks the experts' matrix products and turns them into one list of products.
#include "kernels/cpu/grouped_gemm.h"

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_products.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/parallel.h"

namespace verbatim::kernels::cpu {
namespace {

absl::Status CheckWeights(const GroupedGemmParams& params, std::vector<const PackedMatrix*>& out) {
  if (params.weights.empty() || params.weights.size() > static_cast<size_t>(kMaxExperts)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "GroupedGemm: weights has ", params.weights.size(), " matrices, not 1 to ", kMaxExperts));
  }
  out.clear();
  for (size_t e = 0; e < params.weights.size(); ++e) {
    const auto* weight = dynamic_cast<const PackedMatrix*>(params.weights[e]);
    if (weight == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("GroupedGemm: weights[", e, "] is null or of another backend"));
    }
    if (weight->segments().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("GroupedGemm: weights[", e, "] was not loaded for gemm"));
    }
    out.push_back(weight);
    if (weight->rows() != out[0]->rows() || weight->cols() != out[0]->cols()) {
      return absl::InvalidArgumentError(
          absl::StrCat("GroupedGemm: weights[", e, "] is [", weight->rows(), ", ", weight->cols(),
                       "], weights[0] is [", out[0]->rows(), ", ", out[0]->cols(), "]"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOffsets(const GroupedGemmParams& params) {
  if (params.offsets == nullptr) {
    return absl::InvalidArgumentError("GroupedGemm: offsets is null");
  }
  if (params.offsets[0] != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("GroupedGemm: offsets[0] is ", params.offsets[0], ", not 0"));
  }
  for (size_t e = 0; e < params.weights.size(); ++e) {
    if (params.offsets[e + 1] < params.offsets[e]) {
      return absl::InvalidArgumentError(absl::StrCat("GroupedGemm: offsets[", e + 1, "] is ",
                                                     params.offsets[e + 1], ", below offsets[", e,
                                                     "], ", params.offsets[e]));
    }
  }
  if (params.offsets[params.weights.size()] > params.max_places) {
    return absl::InvalidArgumentError(absl::StrCat("GroupedGemm: offsets[", params.weights.size(),
                                                   "] is ", params.offsets[params.weights.size()],
                                                   ", max_places is ", params.max_places));
  }
  return absl::OkStatus();
}

// Of a call with at least one place.
absl::Status CheckRows(const GroupedGemmParams& params, const PackedMatrix& weight,
                       int32_t places) {
  if (params.x == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError("GroupedGemm: x or y is null");
  }
  if (params.x_stride < weight.cols()) {
    return absl::InvalidArgumentError(absl::StrCat("GroupedGemm: x_stride ", params.x_stride,
                                                   " is below the weights' ", weight.cols(),
                                                   " columns"));
  }
  if (params.y_stride < weight.rows()) {
    return absl::InvalidArgumentError(absl::StrCat("GroupedGemm: y_stride ", params.y_stride,
                                                   " is below the weights' ", weight.rows(),
                                                   " rows"));
  }
  if (params.rows == nullptr) {
    if (places <= params.x_rows) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("GroupedGemm: x_rows is ", params.x_rows, " for ", places, " places"));
  }
  for (int32_t p = 0; p < places; ++p) {
    if (params.rows[p] < 0 || params.rows[p] >= params.x_rows) {
      return absl::InvalidArgumentError(absl::StrCat(
          "GroupedGemm: rows[", p, "] is ", params.rows[p], " of ", params.x_rows, " rows of x"));
    }
  }
  return absl::OkStatus();
}

// oneDNN reads one matrix of rows: those that are picked by index are copied side by side.
absl::Status RunLibrary(const CpuContext& context, const GroupedGemmParams& params,
                        const PanelProduct& product) {
  auto copy = product.weight->LibraryCopy(context, params.mode.activations);
  if (!copy.ok()) return copy.status();
  GemmParams gemm;
  gemm.mode = params.mode;
  gemm.weight = product.weight;
  gemm.tokens = product.x.count;
  gemm.x = product.x.x;
  gemm.x_stride = product.x.stride;
  gemm.y = product.y;
  gemm.y_stride = product.y_stride;
  gemm.round_output = product.round_output;
  if (product.x.rows != nullptr) {
    const int64_t cols = product.weight->cols();
    thread_local std::vector<float> of_caller;
    if (of_caller.size() < static_cast<size_t>(product.x.count * cols)) {
      of_caller.resize(static_cast<size_t>(product.x.count * cols));
    }
    float* const gathered = of_caller.data();
    ParallelRows(context, product.x.count, cols, kMinElementsPerThread,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     std::memcpy(gathered + i * cols, product.x.At(i),
                                 static_cast<size_t>(cols) * sizeof(float));
                   }
                 });
    gemm.x = gathered;
    gemm.x_stride = cols;
  }
  return (*copy)->Run(context, gemm);
}

}  // namespace

absl::Status GroupedGemm(const CpuContext& context, const GroupedGemmParams& params) {
  // Kept between calls: steps allocate nothing.
  thread_local std::vector<const PackedMatrix*> weights;
  if (absl::Status status = CheckWeights(params, weights); !status.ok()) return status;
  if (absl::Status status = CheckOffsets(params); !status.ok()) return status;
  const int32_t places = params.offsets[weights.size()];
  if (places == 0) return absl::OkStatus();
  if (absl::Status status = CheckRows(params, *weights[0], places); !status.ok()) return status;

  thread_local std::vector<PanelProduct> products, for_library;
  products.clear();
  for_library.clear();
  for (size_t e = 0; e < weights.size(); ++e) {
    const int64_t first = params.offsets[e], count = params.offsets[e + 1] - first;
    if (count == 0) continue;
    PanelProduct product;
    product.weight = weights[e];
    product.path = ChoosePath(context, params.mode, *weights[e], count);
    product.x = {params.x, params.x_stride, nullptr, count};
    if (params.rows != nullptr) {
      product.x.rows = params.rows + first;
    } else {
      product.x.x += first * params.x_stride;
    }
    product.y = params.y + first * params.y_stride;
    product.y_stride = params.y_stride;
    product.round_output = params.round_output;
    (product.path == GemmPath::kLibrary ? for_library : products).push_back(product);
  }
  if (!products.empty()) RunProducts(context, products);
  for (const PanelProduct& product : for_library) {
    if (absl::Status status = RunLibrary(context, params, product); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

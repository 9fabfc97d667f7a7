// Checks a matrix product and chooses who computes it.
#include "kernels/cpu/gemm.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_products.h"
#include "kernels/cpu/packed_matrix.h"

namespace verbatim::kernels::cpu {
namespace {

absl::Status Check(const GemmParams& params, const PackedMatrix* weight) {
  if (weight == nullptr) {
    return absl::InvalidArgumentError("gemm: weight is null or of another backend");
  }
  if (weight->segments().empty()) {
    return absl::InvalidArgumentError("gemm: weight was not loaded for gemm");
  }
  if (params.tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat("gemm: tokens is ", params.tokens));
  }
  if (params.tokens == 0) return absl::OkStatus();
  if (params.x == nullptr || params.y == nullptr) {
    return absl::InvalidArgumentError("gemm: x or y is null");
  }
  if (params.x_stride < weight->cols()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gemm: x_stride ", params.x_stride, " is below the weight's ", weight->cols(), " columns"));
  }
  if (params.y_stride < weight->rows()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gemm: y_stride ", params.y_stride, " is below the weight's ", weight->rows(), " rows"));
  }
  return absl::OkStatus();
}

}  // namespace

const GemmKernels& KernelsOf(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return isa_avx512::kGemmKernels;
    case Isa::kAvx2:
      return isa_avx2::kGemmKernels;
#endif
    default:
      return isa_scalar::kGemmKernels;
  }
}

bool HasBf16Kernels() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

bool UsesBf16Leaves(Isa isa) { return isa == Isa::kAvx512 && HasBf16Kernels(); }

uint32_t Bf16Probe() {
#if defined(__x86_64__)
  return isa_avx512bf16::ProbeDotProducts();
#else
  return 0;
#endif
}

absl::Status Gemm(const CpuContext& context, const GemmParams& params) {
  const auto* weight = dynamic_cast<const PackedMatrix*>(params.weight);
  if (absl::Status status = Check(params, weight); !status.ok()) return status;
  if (params.tokens == 0) return absl::OkStatus();
  const GemmPath path = ChoosePath(context, params.mode, *weight, params.tokens);
  if (path == GemmPath::kLibrary) {
    auto copy = weight->LibraryCopy(context, params.mode.activations);
    if (!copy.ok()) return copy.status();
    return (*copy)->Run(context, params);
  }
  const PanelProduct product = {.weight = weight,
                                .path = path,
                                .x = {params.x, params.x_stride, nullptr, params.tokens},
                                .y = params.y,
                                .y_stride = params.y_stride,
                                .bias = params.bias,
                                .residual = params.residual,
                                .round_output = params.round_output};
  RunProducts(context, absl::MakeConstSpan(&product, 1));
  return absl::OkStatus();
}

std::string_view GemmKernel(const CpuContext& context, const NumericMode& mode,
                            const WeightMatrix& weight, int64_t tokens) {
  const auto* packed = dynamic_cast<const PackedMatrix*>(&weight);
  if (packed == nullptr || packed->segments().empty()) return "none";
  switch (ChoosePath(context, mode, *packed, tokens)) {
    case GemmPath::kTree:
      return "tree";
    case GemmPath::kFactored:
      return "factored";
    case GemmPath::kBf16:
      return "bf16";
    case GemmPath::kLibrary:
      return "onednn";
  }
  return "none";
}

}  // namespace verbatim::kernels::cpu

// Checks a matrix product and gives each thread its panels.
#include "kernels/cpu/gemm.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_layout.h"
#include "kernels/cpu/packed_matrix.h"

namespace verbatim::kernels::cpu {
namespace {

using PanelKernel = void (*)(const PanelRun&);

PanelKernel TreeKernel(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return isa_avx512::TreeGemm;
    case Isa::kAvx2:
      return isa_avx2::TreeGemm;
#endif
    default:
      return isa_scalar::TreeGemm;
  }
}

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

// Runs `kernel` on the panels of the matrix, cut among the threads.
void RunPanels(const CpuContext& context, const GemmParams& params, const PackedMatrix& weight,
               PanelKernel kernel) {
  context.pool->Run([&](int thread) {
    const ThreadPool::Range range =
        ThreadPool::PartOf(weight.panels(), 1, thread, context.pool->threads());
    for (const PanelSegment& segment : weight.segments()) {
      const int64_t begin = std::max(range.begin - segment.panel_begin, int64_t{0});
      const int64_t end = std::min(range.end - segment.panel_begin, segment.panels);
      if (begin >= end) continue;
      const int64_t column = segment.row_begin + begin * kPanelLanes;
      PanelRun run;
      run.dtype = segment.dtype;
      run.panels = segment.data + begin * segment.panel_bytes;
      run.panel_bytes = segment.panel_bytes;
      run.panel_count = end - begin;
      run.columns = std::min(segment.rows, end * kPanelLanes) - begin * kPanelLanes;
      run.k = weight.cols();
      run.tokens = params.tokens;
      run.x = params.x;
      run.x_stride = params.x_stride;
      run.y = params.y + column;
      run.y_stride = params.y_stride;
      run.bias = params.bias == nullptr ? nullptr : params.bias + column;
      run.residual = params.residual == nullptr ? nullptr : params.residual + column;
      run.joins = weight.tree_joins().data();
      kernel(run);
    }
  });
}

}  // namespace

absl::Status Gemm(const CpuContext& context, const GemmParams& params) {
  const auto* weight = dynamic_cast<const PackedMatrix*>(params.weight);
  if (absl::Status status = Check(params, weight); !status.ok()) return status;
  if (params.tokens == 0) return absl::OkStatus();
  RunPanels(context, params, *weight, TreeKernel(context.isa));
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

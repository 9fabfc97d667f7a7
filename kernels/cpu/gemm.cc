// Checks a matrix product and gives each thread its panels.
#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_layout.h"
#include "kernels/cpu/packed_matrix.h"

namespace verbatim::kernels::cpu {
namespace {

using PanelKernel = void (*)(const PanelRun&);

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

// Which kernel a THROUGHPUT product runs on.
enum class Path { kTree, kFactored, kBf16, kLibrary };

// The rules below are what bench/gemm_bench.cc showed on AVX-512 (Zen 5, two cores, 46 GB/s), and
// for AVX2 on the same processor. Splitting K between threads was never needed: even 576 outputs
// are 18 panels, more than the threads of the machines this backend is for, and a panel streams all
// of its k.

// Factoring the scales out saves a multiply-add a weight, and costs a few a group and token.
bool FactoringPays(Isa isa, DType dtype, int64_t tokens) {
  if (InfoOf(dtype).block_elements == 1) return false;
  if (isa != Isa::kAvx512) return tokens <= 2;
  // GCC 12 keeps sums of the two-token Q8_0 kernel in memory.
  return tokens <= 4 && !(dtype == DType::kQ8_0 && tokens == 2);
}

// From how many tokens on oneDNN's prepacked copy is faster than the stored bits.
int64_t LibraryMinTokens(Isa isa, DType dtype, ActivationType activations) {
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  if (isa == Isa::kScalar) return kNever;
  if (activations == ActivationType::kF32) {
    // On AVX-512 widening in registers keeps up with fp32 copies at every size (0.97 to 3.5 times
    // their speed), at no second copy.
    return isa == Isa::kAvx512 ? kNever : 64;
  }
  if (!HasBf16Kernels()) return kNever;  // oneDNN would emulate bf16
  if (isa != Isa::kAvx512) return 8;
  switch (dtype) {
    case DType::kF32:
      return 1;  // half the bytes to read
    case DType::kF16:
      return 8;
    case DType::kBF16:
      return 192;
    default:
      return 32;
  }
}

Path ChoosePath(const CpuContext& context, const GemmParams& params, const PackedMatrix& weight) {
  if (IsStrong(params.mode.policy)) return Path::kTree;
  // The segment with the most panels decides for all.
  const PanelSegment* main = &weight.segments()[0];
  for (const PanelSegment& segment : weight.segments()) {
    if (segment.panels > main->panels) main = &segment;
  }
  const ActivationType activations = params.mode.activations;
  const GemmOptions& options = weight.gemm_options();
  const int64_t library_tokens = options.library_min_tokens > 0
                                     ? options.library_min_tokens
                                     : LibraryMinTokens(context.isa, main->dtype, activations);
  if (options.library_copies != GemmOptions::LibraryCopies::kNever &&
      params.tokens >= library_tokens) {
    return Path::kLibrary;
  }
  if (activations == ActivationType::kBF16 && context.isa == Isa::kAvx512 && HasBf16Kernels()) {
    return Path::kBf16;
  }
  return FactoringPays(context.isa, main->dtype, params.tokens) ? Path::kFactored : Path::kTree;
}

// Runs `kernel` on the panels of the matrix, cut among the threads.
void RunPanels(const CpuContext& context, const GemmParams& params, const PackedMatrix& weight,
               PanelKernel kernel, bool bf16) {
  const GemmKernels& kernels = KernelsOf(context.isa);
  context.pool->Run([&](int thread) {
    const ThreadPool::Range range =
        ThreadPool::PartOf(weight.panels(), 1, thread, context.pool->threads());
    if (range.begin >= range.end) return;
    // Few tokens: rounding them on every thread costs less than a meeting of all threads.
    thread_local std::vector<uint16_t> x_bf16;
    const int64_t x_bf16_stride = (weight.cols() + 1) / 2 * 2;
    if (bf16) {
      x_bf16.resize(static_cast<size_t>(params.tokens * x_bf16_stride));
      for (int64_t t = 0; t < params.tokens; ++t) {
        uint16_t* to = x_bf16.data() + t * x_bf16_stride;
        to[x_bf16_stride - 1] = 0;
        kernels.round_to_bf16(params.x + t * params.x_stride, weight.cols(), to);
      }
    }
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
      run.x_bf16 = bf16 ? x_bf16.data() : nullptr;
      run.x_bf16_stride = x_bf16_stride;
      kernel(run);
      if (!params.round_output) continue;
      for (int64_t t = 0; t < params.tokens; ++t) {
        kernels.round_in_place(run.y + t * run.y_stride, run.columns);
      }
    }
  });
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

absl::Status Gemm(const CpuContext& context, const GemmParams& params) {
  const auto* weight = dynamic_cast<const PackedMatrix*>(params.weight);
  if (absl::Status status = Check(params, weight); !status.ok()) return status;
  if (params.tokens == 0) return absl::OkStatus();
  const GemmKernels& kernels = KernelsOf(context.isa);
  switch (ChoosePath(context, params, *weight)) {
    case Path::kLibrary: {
      auto copy = weight->LibraryCopy(context, params.mode.activations);
      if (!copy.ok()) return copy.status();
      return (*copy)->Run(context, params);
    }
    case Path::kBf16:
#if defined(__x86_64__)
      RunPanels(context, params, *weight, isa_avx512bf16::Bf16Gemm, true);
#endif
      break;
    case Path::kFactored:
      RunPanels(context, params, *weight, kernels.factored, false);
      break;
    case Path::kTree:
      RunPanels(context, params, *weight, kernels.tree, false);
      break;
  }
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu

// Checks a matrix product and gives each thread its panels.
#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <limits>
#include <string_view>
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
      return 128;
  }
}

Path ChoosePath(const CpuContext& context, const GemmParams& params, const PackedMatrix& weight) {
  if (params.mode.policy == Policy::kPortable) return Path::kTree;
  if (params.mode.policy == Policy::kPinned) {
    return UsesBf16Leaves(context.isa) ? Path::kBf16 : Path::kTree;
  }
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
  if (activations == ActivationType::kBF16 && UsesBf16Leaves(context.isa)) {
    return Path::kBf16;
  }
  return FactoringPays(context.isa, main->dtype, params.tokens) ? Path::kFactored : Path::kTree;
}

// x rounded to bf16, with the sums over its groups where a format of the weight asks for them.
class Bf16Rows {
 public:
  void Resize(const GemmParams& params, const PackedMatrix& weight) {
    tokens_ = params.tokens;
    k_ = weight.cols();
    stride_ = (k_ + 1) / 2 * 2;
    const bool direct = tokens_ <= kMaxBf16DirectRows;
    x_.resize(static_cast<size_t>(direct ? tokens_ * stride_ : 0));
    pairs_.resize(static_cast<size_t>(direct ? 0 : Bf16Tiles(tokens_) * TilePairs()));
    bool wants_sums = false;
    for (const PanelSegment& segment : weight.segments()) {
      wants_sums = wants_sums || NeedsGroupSums(segment.dtype);
    }
    sums_.resize(static_cast<size_t>(wants_sums ? tokens_ * (k_ / 32) : 0));
  }
  // Part `part` of `parts` of the work.
  void Fill(const GemmKernels& kernels, const GemmParams& params, int part, int parts) {
    if (pairs_.empty()) {
      const ThreadPool::Range rows = ThreadPool::PartOf(tokens_, 1, part, parts);
      for (int64_t t = rows.begin; t < rows.end; ++t) {
        FillRow(kernels, params, t, x_.data() + t * stride_);
      }
      return;
    }
    thread_local std::vector<uint16_t> tile_rows;
    tile_rows.resize(static_cast<size_t>(kBf16TileRows * stride_));
    const ThreadPool::Range tiles = ThreadPool::PartOf(Bf16Tiles(tokens_), 1, part, parts);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Bf16Tile tile = Bf16TileOf(tokens_, t);
      for (int r = 0; r < tile.rows; ++r) {
        FillRow(kernels, params, tile.row + r, tile_rows.data() + r * stride_);
      }
#if defined(__x86_64__)
      isa_avx512bf16::PackBf16Tile(tile_rows.data(), stride_, tile.rows, stride_ / 2,
                                   pairs_.data() + t * TilePairs());
#endif
    }
  }
  void Describe(const PackedMatrix& weight, PanelRun& run) const {
    run.shard_joins = weight.shard_joins().data();
    run.x_bf16 = x_.data();
    run.x_pairs = pairs_.data();
    run.x_bf16_stride = stride_;
    run.x_sums = sums_.data();
    run.x_sums_stride = tokens_;
  }

 private:
  int64_t TilePairs() const { return stride_ / 2 * kBf16TileRows; }
  void FillRow(const GemmKernels& kernels, const GemmParams& params, int64_t row, uint16_t* to) {
    to[stride_ - 1] = 0;
    kernels.round_to_bf16(params.x + row * params.x_stride, k_, to);
#if defined(__x86_64__)
    if (!sums_.empty()) isa_avx512bf16::SumGroups(to, k_, sums_.data() + row, tokens_);
#endif
  }

  int64_t tokens_ = 0, k_ = 0, stride_ = 0;
  std::vector<uint16_t> x_;     // [tokens, stride], for few tokens
  std::vector<int32_t> pairs_;  // [tiles][stride / 2, kBf16TileRows], for more
  std::vector<float> sums_;     // [k / 32, tokens], or empty
};

// Below this many elements, rounding them on every thread costs less than a meeting of all threads.
constexpr int64_t kShareRounding = 1 << 16;

// After which chunk how many partial sums are joined.
const uint8_t* TreeJoins(const GemmParams& params, const PackedMatrix& weight) {
#ifdef VERBATIM_FAULT_GEMM_ORDER
  // Only in builds that show that the conformance suite can fail: a large batch is summed from left
  // to right.
  static const std::vector<uint8_t> left_to_right = [] {
    std::vector<uint8_t> joins(4096, 1);
    joins[0] = 0;
    return joins;
  }();
  if (params.tokens > 8) return left_to_right.data();
#else
  (void)params;
#endif
  return weight.tree_joins().data();
}

// Runs `kernel` on the panels of the matrix, cut among the threads.
void RunPanels(const CpuContext& context, const GemmParams& params, const PackedMatrix& weight,
               PanelKernel kernel, bool bf16) {
  const GemmKernels& kernels = KernelsOf(context.isa);
  const int threads = context.pool->threads();
  const bool shared = bf16 && threads > 1 && params.tokens * weight.cols() >= kShareRounding;
  // Kept between calls: steps allocate nothing once the largest has been seen.
  thread_local Bf16Rows of_caller;
  Bf16Rows& together = of_caller;
  if (shared) {
    together.Resize(params, weight);
    context.pool->Run([&](int thread) { together.Fill(kernels, params, thread, threads); });
  }
  context.pool->Run([&](int thread) {
    const ThreadPool::Range range = ThreadPool::PartOf(weight.panels(), 1, thread, threads);
    if (range.begin >= range.end) return;
    thread_local Bf16Rows alone;
    if (bf16 && !shared) {
      alone.Resize(params, weight);
      alone.Fill(kernels, params, 0, 1);
    }
    const Bf16Rows& rows = shared ? together : alone;
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
      run.joins = TreeJoins(params, weight);
      if (bf16) rows.Describe(weight, run);
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

std::string_view GemmKernel(const CpuContext& context, const NumericMode& mode,
                            const WeightMatrix& weight, int64_t tokens) {
  const auto* packed = dynamic_cast<const PackedMatrix*>(&weight);
  if (packed == nullptr || packed->segments().empty()) return "none";
  GemmParams params;
  params.mode = mode;
  params.tokens = tokens;
  switch (ChoosePath(context, params, *packed)) {
    case Path::kTree:
      return "tree";
    case Path::kFactored:
      return "factored";
    case Path::kBf16:
      return "bf16";
    case Path::kLibrary:
      return "onednn";
  }
  return "none";
}

}  // namespace verbatim::kernels::cpu

// THROUGHPUT's dense products by the vendor's library, and which product is one.
//
// The rule: every dense product of THROUGHPUT on matrix units, whatever the number of tokens, for
// which the library's heuristics have an algorithm. Products of experts are PINNED's: their numbers
// of rows are known to the device alone.
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {
namespace {

bool On16Bytes(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace

int64_t CudaBackend::SliceTokens(int64_t tokens, const CudaMatrix& weight) const {
  const int64_t row_bytes = RowPitch(weight.cols()) * 2;
  const int64_t most = static_cast<int64_t>(workspace_->size_bytes()) / row_bytes;
  if (tokens <= most) return tokens;
  return most < 4 ? most : most - most % 4;  // every slice of y is aligned as the first
}

const LibraryGemm::Algorithm* CudaBackend::LibraryAlgorithm(Policy policy,
                                                            const LibraryGemmShape& shape) const {
  if (policy != Policy::kThroughput || library_ == nullptr) return nullptr;
  return library_->Choose(shape);
}

std::string CudaBackend::KernelOnMatrixUnits(Policy policy, const CudaMatrix& weight,
                                             int64_t tokens) const {
  const auto name = [&](int64_t rows) -> std::string {
    const auto* algorithm = rows < 1 ? nullptr
                                     : LibraryAlgorithm(policy, {.tokens = rows,
                                                                 .rows = weight.rows(),
                                                                 .cols = RowPitch(weight.cols()),
                                                                 .y_stride = weight.rows()});
    return algorithm != nullptr ? algorithm->name() : "cuda mma shards";
  };
  const int64_t slice = SliceTokens(tokens, weight);
  std::string names = name(slice);
  if (slice > 0 && tokens % slice != 0) {
    if (const std::string last = name(tokens % slice); last != names) {
      absl::StrAppend(&names, ", then ", last);
    }
  }
  return names;
}

absl::StatusOr<bool> CudaBackend::GemmByLibrary(const GemmParams& params, const CudaMatrix& weight,
                                                int64_t first, int64_t tokens,
                                                const void* rounded_x, bool round) {
  const int64_t offset = first * params.y_stride;
  const LibraryGemmArgs args{
      .tokens = tokens,
      .x = rounded_x,
      .w = weight.bf16().quants,
      .y = params.y + offset,
      .residual = params.residual == nullptr ? nullptr : params.residual + offset};
  // One row has no stride; callers may give any.
  const int64_t y_stride = params.tokens > 1 ? params.y_stride : weight.rows();
  const LibraryGemm::Algorithm* algorithm = LibraryAlgorithm(
      params.mode.policy, {.tokens = tokens,
                           .rows = weight.rows(),
                           .cols = RowPitch(weight.cols()),
                           .y_stride = y_stride,
                           .aligned = On16Bytes(args.y) && On16Bytes(args.residual)});
  if (algorithm == nullptr) return false;
  absl::Status status = library_->Run(*algorithm, args, stream_);
  if (status.ok() && (params.bias != nullptr || round)) {
    status = runtime::LaunchStatus("Gemm", LaunchGemmFinish({.tokens = tokens,
                                                             .rows = weight.rows(),
                                                             .y = args.y,
                                                             .y_stride = y_stride,
                                                             .bias = params.bias,
                                                             .round = round},
                                                            stream_));
  }
  if (!status.ok()) return status;
  return true;
}

}  // namespace verbatim::kernels::cuda

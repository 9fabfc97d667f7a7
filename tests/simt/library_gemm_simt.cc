// The library of products on the emulator: sums in fp32, in an order that follows the number of
// tokens as a vendor's heuristics do.
#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/runtime.h"
#include "kernels/numerics/bf16.h"
#include "simt/faults.h"

namespace verbatim::kernels::cuda {
namespace {

bool present = true;
int64_t unknown_tokens = 0;

// Few outputs: the reduction is split so that more of the device has work.
int64_t SplitsFor(int64_t tokens) { return tokens <= 4 ? 4 : tokens <= 16 ? 2 : 1; }

// A kernel, so that it is recorded as kernels are. grid (tokens).
__global__ void ReferenceKernel(LibraryGemmShape shape, LibraryGemmArgs args, int64_t splits) {
  const auto* w = static_cast<const uint16_t*>(args.w);
  const int64_t token = blockIdx.x;
  const auto* x = static_cast<const uint16_t*>(args.x) + token * shape.cols;
  for (int64_t row = threadIdx.x; row < shape.rows; row += blockDim.x) {
    float sum = 0.0f;
    for (int64_t split = 0; split < splits; ++split) {
      float part = 0.0f;
      for (int64_t k = split * shape.cols / splits; k < (split + 1) * shape.cols / splits; ++k) {
        part += numerics::FloatFromBf16(x[k]) * numerics::FloatFromBf16(w[row * shape.cols + k]);
      }
      sum += part;
    }
    const int64_t at = token * shape.y_stride + row;
    args.y[at] = args.residual != nullptr ? args.residual[at] + sum : sum;
  }
}

class Reference final : public LibraryGemm {
 public:
  explicit Reference(std::unique_ptr<DeviceBuffer> workspace) : workspace_(std::move(workspace)) {}

  std::string Version() const override { return "reference-1"; }

  const Algorithm* Choose(const LibraryGemmShape& shape) override {
    const int64_t tokens = LibraryTokens(shape.tokens);
    if (tokens == unknown_tokens) return nullptr;
    const auto key = std::tuple(tokens, shape.rows, shape.cols, shape.y_stride, shape.aligned);
    auto& choice = choices_[key];
    if (choice == nullptr) choice = std::make_unique<Choice>(shape);
    return choice.get();
  }

  absl::Status Run(const Algorithm& algorithm, const LibraryGemmArgs& args,
                   Stream stream) override {
    const auto& choice = static_cast<const Choice&>(algorithm);
    const LibraryGemmShape& shape = choice.shape;
    if (shape.aligned && (reinterpret_cast<uintptr_t>(args.y) % 16 != 0 ||
                          reinterpret_cast<uintptr_t>(args.residual) % 16 != 0)) {
      return absl::InternalError("cuda: the reference product: y is not aligned as it was said");
    }
    return runtime::LaunchStatus(
        "the library's product",
        Launch(ReferenceKernel, {dim3(static_cast<unsigned int>(args.tokens)), dim3(32), 0}, stream,
               shape, args, choice.splits));
  }

 private:
  struct Choice final : public Algorithm {
    explicit Choice(const LibraryGemmShape& of)
        : Algorithm(absl::StrCat("reference splitk ", SplitsFor(LibraryTokens(of.tokens)))),
          shape(of),
          splits(SplitsFor(LibraryTokens(of.tokens))) {}
    const LibraryGemmShape shape;
    const int64_t splits;
  };

  const std::unique_ptr<DeviceBuffer> workspace_;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t, bool>, std::unique_ptr<Choice>> choices_;
};

}  // namespace

namespace simt_faults {
void SetLibraryPresent(bool is_present) { present = is_present; }
void SetLibraryUnknownTokens(int64_t tokens) { unknown_tokens = tokens; }
}  // namespace simt_faults

absl::StatusOr<std::unique_ptr<LibraryGemm>> LibraryGemm::Open(size_t workspace_bytes) {
  if (!present) return absl::NotFoundError("no reference library");
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> workspace = DeviceBuffer::Create(workspace_bytes);
  if (!workspace.ok()) return workspace.status();
  return std::make_unique<Reference>(*std::move(workspace));
}

}  // namespace verbatim::kernels::cuda

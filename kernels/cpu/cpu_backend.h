// The backend that computes on the host's processor.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_pool.h"

namespace verbatim::kernels::cpu {

struct CpuBackendOptions {
  int threads = 0;         // 0: every core this process may use
  std::optional<Isa> isa;  // unset: the widest this machine has
  GemmOptions gemm;
};

class CpuBackend final : public Backend {
 public:
  // INVALID_ARGUMENT for a thread count below 0 or above 1024. FAILED_PRECONDITION for an
  // instruction set that this machine lacks.
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const CpuBackendOptions& options);

  // The options of the backend that Describe() names thus ("cpu avx512, 2 threads").
  // INVALID_ARGUMENT for anything that Describe() does not write.
  static absl::StatusOr<CpuBackendOptions> OptionsOf(const std::string& description);

  std::string Describe() const override;
  // The strong policies are the same code here, whatever the instruction set and the threads, and
  // so share one tag.
  absl::StatusOr<std::string> NumericsTag(Policy policy) const override;

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t size_bytes) override;
  absl::StatusOr<int64_t> FreeMemoryBytes() override;
  absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes) override;
  absl::Status CopyToHost(void* host, const void* device, size_t size_bytes) override;
  absl::Status Synchronize() override;
  std::string GemmKernel(const NumericMode& mode, const WeightMatrix& weight,
                         int64_t tokens) const override;
  std::vector<AttentionCut> AttentionCuts(const NumericMode& mode, const KvCacheConfig& cache,
                                          int64_t num_heads,
                                          absl::Span<const SequenceSpan> spans) const override;

  absl::StatusOr<std::unique_ptr<WeightMatrix>> LoadMatrix(
      absl::Span<const StoredMatrix> parts, const LoadMatrixOptions& options) override;
  absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheConfig& config) override;

  // Nothing is gained by recording: no padding, and operations are called in every step.
  int64_t DecodeRows(int64_t sequences) const override { return sequences; }
  bool RecordsDecode() const override { return false; }
  std::string DecodePlan(const DecodeStep& step) const override;
  void ForgetDecode() override {}
  absl::Status RunDecode(const DecodeStep& step,
                         absl::FunctionRef<absl::Status()> operations) override;

  absl::Status Embedding(const EmbeddingParams& params) override;
  absl::Status RmsNorm(const RmsNormParams& params) override;
  absl::Status Gemm(const GemmParams& params) override;
  absl::Status Rope(const RopeParams& params) override;
  absl::Status KvWrite(const KvWriteParams& params) override;
  absl::Status Attention(const AttentionParams& params) override;
  absl::Status SwiGlu(const SwiGluParams& params) override;
  absl::Status MoeRoute(const MoeRouteParams& params) override;
  absl::Status MoePermute(const MoePermuteParams& params) override;
  absl::Status GroupedGemm(const GroupedGemmParams& params) override;
  absl::Status MoeCombine(const MoeCombineParams& params) override;
  absl::Status GatherRows(const GatherRowsParams& params) override;
  absl::Status TreeSum(const TreeSumParams& params) override;
  absl::Status Sample(const SamplingParams& params) override;

 private:
  CpuBackend(const CpuBackendOptions& options, Isa isa, int threads);

  const CpuBackendOptions options_;
  ThreadPool pool_;
  const CpuContext context_;
};

}  // namespace verbatim::kernels::cpu

// The one door to compute: memory, weights, KV pages, and one method per operation.
//
// A backend implements every method; there is no fallback from one backend to another. Pointers in
// parameter structs are device pointers of this backend (on the CPU: ordinary memory), except the
// spans of SequenceSpan, SamplingRow and SampledRow and the page tables they point to, which are
// host memory. Operations run in the order called. Not thread-safe: one thread, the engine's, owns
// a backend.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/decode_step.h"
#include "kernels/ops/dtype.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/gather_rows.h"
#include "kernels/ops/gemm.h"
#include "kernels/ops/kv_cache.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/sampling.h"
#include "kernels/ops/swiglu.h"
#include "kernels/ops/tree_sum.h"

namespace verbatim::kernels {

// Uninitialised memory of a backend, 64-byte aligned, freed with the object.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() = 0;
  virtual size_t size_bytes() const = 0;
};

// A weight matrix [rows, cols] in the backend's own layouts.
class WeightMatrix {
 public:
  virtual ~WeightMatrix() = default;
  virtual int64_t rows() const = 0;       // output features
  virtual int64_t cols() const = 0;       // input features
  virtual size_t size_bytes() const = 0;  // all copies together
};

struct LoadMatrixOptions {
  bool for_gemm = true;        // will be used by Gemm or GroupedGemm
  bool for_embedding = false;  // will be used by Embedding
  // Will be used by GroupedGemm, with for_gemm: one of many that share a step's tokens. No second
  // copy is made for large products: few tokens would profit, all experts' memory would be spent.
  bool for_experts = false;
  // Depth of the shards, PINNED's leaves, in the tree over this matrix's own columns. Less than the
  // whole matrix's where the columns are those of one rank: its node lies that much deeper already.
  int shard_depth = numerics::kShardDepth;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // For people: "cpu avx512, 2 threads".
  virtual std::string Describe() const = 0;
  // What fixes the bits of a policy on this backend, as part of a numerics id; the same string
  // means the same bits. FAILED_PRECONDITION if the policy cannot be honoured here, saying which
  // part cannot.
  virtual absl::StatusOr<std::string> NumericsTag(Policy policy) const = 0;

  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t size_bytes) = 0;
  // Memory that is free now: the device's, or on the CPU what the host could give without swapping.
  virtual absl::StatusOr<int64_t> FreeMemoryBytes() = 0;
  virtual absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes) = 0;
  virtual absl::Status CopyToHost(void* host, const void* device, size_t size_bytes) = 0;
  // Waits for everything before it. What has gone wrong for some values alone is reported once; a
  // device that cannot be used again by this process reports that from every call from then on.
  virtual absl::Status Synchronize() = 0;

  // What an operation would decide for a shape: the same functions that the operations ask, so that
  // a record of them says what decided the bits. Nothing is computed. GemmKernel: a short name of
  // the kernel that multiplies `tokens` rows. AttentionCuts: the stretches that are computed in
  // pieces; none for the strong policies, whose cuts are the contract's. The spans' pages are not
  // read and may be null.
  virtual std::string GemmKernel(const NumericMode& mode, const WeightMatrix& weight,
                                 int64_t tokens) const = 0;
  virtual std::vector<AttentionCut> AttentionCuts(const NumericMode& mode,
                                                  const KvCacheConfig& cache, int64_t num_heads,
                                                  absl::Span<const SequenceSpan> spans) const = 0;

  // Packs matrices that share `cols`, their rows concatenated in order (fused QKV, gate and up).
  // The stored bytes must outlive the result (a backend may keep reading them). Formats may differ
  // between parts.
  virtual absl::StatusOr<std::unique_ptr<WeightMatrix>> LoadMatrix(
      absl::Span<const StoredMatrix> parts, const LoadMatrixOptions& options) = 0;
  virtual absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheConfig& config) = 0;

  // Rows that a decode step of so many sequences computes, at least that many: a few sizes, so that
  // few steps differ in what a recording of them would hold. GemmKernel is the same for both
  // numbers.
  virtual int64_t DecodeRows(int64_t sequences) const = 0;
  // Whether RunDecode records steps.
  virtual bool RecordsDecode() const = 0;
  // What RunDecode would now do with the step, in words. Ranks of tensor parallelism must all do
  // the same, because a recording holds their exchanges: where they have had the same steps so far,
  // these words are the same.
  virtual std::string DecodePlan(const DecodeStep& step) const = 0;
  // Runs the operations of a decode step: calls `operations`, which calls methods of this backend,
  // or replays what they were in an equal step. May call them twice, the second time for the record
  // alone. In them KvWrite and Attention are given the step's spans and do not touch its padding;
  // copies, waiting and Sample are not allowed; what else they put on the device's stream (ranks'
  // exchanges) is recorded with them. INVALID_ARGUMENT for a step that contradicts itself.
  virtual absl::Status RunDecode(const DecodeStep& step,
                                 absl::FunctionRef<absl::Status()> operations) = 0;
  // Drops what RunDecode has recorded, once none of it runs any more.
  virtual void ForgetDecode() = 0;

  // The operations; contracts in kernels/ops/. INVALID_ARGUMENT for shapes that contradict each
  // other.
  virtual absl::Status Embedding(const EmbeddingParams& params) = 0;
  virtual absl::Status RmsNorm(const RmsNormParams& params) = 0;
  virtual absl::Status Gemm(const GemmParams& params) = 0;
  virtual absl::Status Rope(const RopeParams& params) = 0;
  virtual absl::Status KvWrite(const KvWriteParams& params) = 0;
  virtual absl::Status Attention(const AttentionParams& params) = 0;
  virtual absl::Status SwiGlu(const SwiGluParams& params) = 0;
  virtual absl::Status MoeRoute(const MoeRouteParams& params) = 0;
  virtual absl::Status MoePermute(const MoePermuteParams& params) = 0;
  virtual absl::Status GroupedGemm(const GroupedGemmParams& params) = 0;
  virtual absl::Status MoeCombine(const MoeCombineParams& params) = 0;
  virtual absl::Status GatherRows(const GatherRowsParams& params) = 0;
  virtual absl::Status TreeSum(const TreeSumParams& params) = 0;
  virtual absl::Status Sample(const SamplingParams& params) = 0;
};

}  // namespace verbatim::kernels

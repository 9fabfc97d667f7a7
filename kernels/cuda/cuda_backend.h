// The backend that computes on an NVIDIA GPU.
//
// One stream; operations are put on it in the order called and only CopyToHost, Sample and
// Synchronize wait. Memory for working is allocated by Create: operations allocate nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/batch_tables.h"
#include "kernels/cuda/cuda_kv_cache.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_sampler.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/expert_tables.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/pinned_gemm_form.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/cuda/weight_arena.h"

namespace verbatim::kernels::cuda {

struct CudaBackendOptions {
  int device = 0;
  // Serve PINNED and THROUGHPUT: keeps each matrix also as bf16, unless it is stored as that.
  bool matrix_units = true;
  // With matrix_units: PINNED products of many tokens by wgmma, on devices that have it and where
  // it was seen to give the bits of mma.sync (pinned_gemm_form.h); Describe says what is used.
  bool wgmma = true;
  // With matrix_units: THROUGHPUT's dense products by the vendor's library where the machine has
  // it, with so much working memory of its own; without it they are PINNED's, and Describe says so.
  bool library_products = true;
  size_t library_workspace_bytes = size_t{32} << 20;
  // Weights lie in blocks of so many bytes (weight_arena.h); 0: each array has its own.
  size_t weight_block_bytes = size_t{128} << 20;
  // Partial results and activations rounded to bf16; an operation that needs more is refused.
  size_t workspace_bytes = size_t{256} << 20;
  // Page tables and rows of one batch.
  size_t table_bytes = size_t{16} << 20;
  // Which weights the experts of every layer have: for each expert and product 64 bytes under
  // PORTABLE, and 64 for matrix units, 192 with wgmma.
  size_t expert_table_bytes = size_t{16} << 20;
  size_t staging_slot_bytes = size_t{4} << 20;
  // Logits that sampling changes, and the lists (bias, penalties, most probable tokens) of its
  // rows.
  size_t sampling_scratch_bytes = size_t{128} << 20;
  size_t sampling_list_bytes = size_t{16} << 20;
  // Recorded decode steps that are kept; 0: every operation is launched by itself.
  size_t max_graphs = 256;
};

class CudaBackend final : public Backend {
 public:
  // FAILED_PRECONDITION: no driver, a driver that is too old, no such device, an architecture that
  // the kernels were not built for or that has too little shared memory for one of them.
  // RESOURCE_EXHAUSTED: too little device memory.
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const CudaBackendOptions& options);
  ~CudaBackend() override;

  // What operations are put on, also for who puts something between them. The thread that created
  // the backend has its device current.
  Stream stream() const { return stream_; }

  std::string Describe() const override;
  absl::StatusOr<std::string> NumericsTag(Policy policy) const override;

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t size_bytes) override;
  absl::StatusOr<int64_t> FreeMemoryBytes() override;
  absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes) override;
  absl::Status CopyToHost(void* host, const void* device, size_t size_bytes) override;
  // Also reports values that only kernels could see to be out of range: INVALID_ARGUMENT.
  absl::Status Synchronize() override;

  absl::StatusOr<std::unique_ptr<WeightMatrix>> LoadMatrix(
      absl::Span<const StoredMatrix> parts, const LoadMatrixOptions& options) override;
  absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheConfig& config) override;

  std::string GemmKernel(const NumericMode& mode, const WeightMatrix& weight,
                         int64_t tokens) const override;
  std::vector<AttentionCut> AttentionCuts(const NumericMode& mode, const KvCacheConfig& cache,
                                          int64_t num_heads,
                                          absl::Span<const SequenceSpan> spans) const override;

  int64_t DecodeRows(int64_t sequences) const override { return GraphRows(sequences); }
  bool RecordsDecode() const override { return options_.max_graphs > 0; }
  // A step of kMaxGraphRows rows or fewer is recorded when it is first met, behind its operations,
  // which have then loaded and uploaded what they need: a graph holds kernels and nothing else.
  absl::Status RunDecode(const DecodeStep& step,
                         absl::FunctionRef<absl::Status()> operations) override;
  std::string DecodePlan(const DecodeStep& step) const override;
  void ForgetDecode() override;
  // Steps so far that were recorded, and that a graph computed.
  int64_t recorded_steps() const { return recorded_steps_; }
  int64_t replayed_steps() const { return replayed_steps_; }

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
  CudaBackend(const CudaBackendOptions& options, runtime::DeviceInfo info, Stream stream)
      : options_(options),
        info_(std::move(info)),
        stream_(stream),
        weights_(options.weight_block_bytes),
        graphs_(options.max_graphs, stream) {}

  // Makes the device the calling thread's: a step's first calls (uploads, Embedding) and everything
  // that waits do so, because the engine's thread need not be the one that created the backend.
  absl::Status Enter();
  absl::Status GemmOnMatrixUnits(const GemmParams& params, const CudaMatrix& weight, bool round);
  // What runs for so many tokens, by name.
  std::string KernelOnMatrixUnits(Policy policy, const CudaMatrix& weight, int64_t tokens) const;
  // As many tokens at a time as the workspace holds as bf16; 0 if not even one.
  int64_t SliceTokens(int64_t tokens, const CudaMatrix& weight) const;
  // How the library multiplies for THROUGHPUT; null: PINNED's kernels do.
  const LibraryGemm::Algorithm* LibraryAlgorithm(Policy policy,
                                                 const LibraryGemmShape& shape) const;
  // The product of `tokens` rows from `first` on, rounded already; false: nothing was done,
  // PINNED's kernels are to do it.
  absl::StatusOr<bool> GemmByLibrary(const GemmParams& params, const CudaMatrix& weight,
                                     int64_t first, int64_t tokens, const void* rounded_x,
                                     bool round);
  absl::Status GroupedGemmOnMatrixUnits(const GroupedGemmParams& params, GroupedGemmArgs args,
                                        absl::Span<const ExpertParts> tables);
  absl::Status CheckPolicy(const char* operation, Policy policy) const;
  // cuda_attention.cc. `UploadStepTables` leaves tables that KvWrite and Attention know.
  // Rows and cuts whose partials the workspace holds; positions of a cut, the contract's but for
  // some of THROUGHPUT's (ThroughputCutLength).
  int64_t MaxRowCuts(const KvCacheConfig& config, int64_t num_heads) const;
  int64_t AttentionCutLength(const NumericMode& mode, const KvCacheConfig& config,
                             int64_t num_heads, absl::Span<const SequenceSpan> spans) const;
  absl::Status UploadKvRows();
  absl::Status UploadAttentionTables();
  DecodeCuts CutsOf(const DecodeStep& step, const KvCacheConfig& config, int64_t cut_length) const;
  absl::Status UploadStepTables(const DecodeStep& step, const CudaKvCache& cache);
  // The key of a step's graph; where its tables are built, the one that they have.
  StepGraphs::Key KeyOf(const DecodeStep& step, const CudaKvCache& cache) const;
  std::pair<uint64_t, uint64_t> Epoch() const;
  bool Records(const DecodeStep& step) const {
    return RecordsDecode() && step.replayable && step.rows <= kMaxGraphRows;
  }
  absl::Status RunPrepared(const DecodeStep& step, const CudaKvCache& cache,
                           absl::FunctionRef<absl::Status()> operations);
  // What the kernels' fault word says, as a status; the word is cleared.
  absl::Status TakeFault();
  // The same for a word that was fetched and is not cleared yet.
  absl::Status FaultStatus(uint32_t bits);
  uint32_t* fault() { return static_cast<uint32_t*>(fault_->data()); }

  const CudaBackendOptions options_;
  const runtime::DeviceInfo info_;
  const Stream stream_;
  std::unique_ptr<Uploader> uploader_;
  std::unique_ptr<DeviceBuffer> fault_, workspace_, kv_tables_, attention_tables_;
  std::unique_ptr<PinnedBuffer> fault_copy_;
  WeightArena weights_;
  std::unique_ptr<ExpertTables> expert_tables_;
  std::unique_ptr<CudaSampler> sampler_;
  std::unique_ptr<PinnedGemmForm> pinned_form_;
  std::unique_ptr<LibraryGemm> library_;  // or null, for this reason
  std::string no_library_ = "not asked for";
  // Every layer of a step asks with the same spans: the tables are built and uploaded once.
  SpanMemory kv_spans_, attention_spans_;
  std::vector<KvRow> kv_rows_;
  AttentionTables tables_;
  std::vector<char> table_bytes_;
  // Recorded steps, valid while weights and tables of experts are where they were then.
  StepGraphs graphs_;
  std::pair<uint64_t, uint64_t> graphs_epoch_;
  bool in_step_ = false;
  int64_t recorded_steps_ = 0, replayed_steps_ = 0;
};

}  // namespace verbatim::kernels::cuda

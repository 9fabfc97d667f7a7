// A backend that hands every call to another one: the base of those that change a single thing.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace verbatim::kernels {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string Describe() const override { return inner_->Describe(); }
  absl::StatusOr<std::string> NumericsTag(Policy policy) const override {
    return inner_->NumericsTag(policy);
  }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t size_bytes) override {
    return inner_->Allocate(size_bytes);
  }
  absl::StatusOr<int64_t> FreeMemoryBytes() override { return inner_->FreeMemoryBytes(); }
  absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes) override {
    return inner_->CopyToDevice(device, host, size_bytes);
  }
  absl::Status CopyToHost(void* host, const void* device, size_t size_bytes) override {
    return inner_->CopyToHost(host, device, size_bytes);
  }
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  absl::StatusOr<std::unique_ptr<WeightMatrix>> LoadMatrix(
      absl::Span<const StoredMatrix> parts, const LoadMatrixOptions& options) override {
    return inner_->LoadMatrix(parts, options);
  }
  absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheConfig& config) override {
    return inner_->CreateKvCache(config);
  }
  int64_t DecodeRows(int64_t sequences) const override { return inner_->DecodeRows(sequences); }
  bool RecordsDecode() const override { return inner_->RecordsDecode(); }
  absl::Status RunDecode(const DecodeStep& step,
                         absl::FunctionRef<absl::Status()> operations) override {
    return inner_->RunDecode(step, operations);
  }
  std::string DecodePlan(const DecodeStep& step) const override { return inner_->DecodePlan(step); }
  void ForgetDecode() override { inner_->ForgetDecode(); }
  absl::Status Embedding(const EmbeddingParams& params) override {
    return inner_->Embedding(params);
  }
  absl::Status RmsNorm(const RmsNormParams& params) override { return inner_->RmsNorm(params); }
  absl::Status Gemm(const GemmParams& params) override { return inner_->Gemm(params); }
  absl::Status Rope(const RopeParams& params) override { return inner_->Rope(params); }
  absl::Status KvWrite(const KvWriteParams& params) override { return inner_->KvWrite(params); }
  absl::Status Attention(const AttentionParams& params) override {
    return inner_->Attention(params);
  }
  absl::Status SwiGlu(const SwiGluParams& params) override { return inner_->SwiGlu(params); }
  absl::Status MoeRoute(const MoeRouteParams& params) override { return inner_->MoeRoute(params); }
  absl::Status MoePermute(const MoePermuteParams& params) override {
    return inner_->MoePermute(params);
  }
  absl::Status GroupedGemm(const GroupedGemmParams& params) override {
    return inner_->GroupedGemm(params);
  }
  absl::Status MoeCombine(const MoeCombineParams& params) override {
    return inner_->MoeCombine(params);
  }
  absl::Status GatherRows(const GatherRowsParams& params) override {
    return inner_->GatherRows(params);
  }
  absl::Status TreeSum(const TreeSumParams& params) override { return inner_->TreeSum(params); }
  absl::Status Sample(const SamplingParams& params) override { return inner_->Sample(params); }
  std::string GemmKernel(const NumericMode& mode, const WeightMatrix& weight,
                         int64_t tokens) const override {
    return inner_->GemmKernel(mode, weight, tokens);
  }
  std::vector<AttentionCut> AttentionCuts(const NumericMode& mode, const KvCacheConfig& cache,
                                          int64_t num_heads,
                                          absl::Span<const SequenceSpan> spans) const override {
    return inner_->AttentionCuts(mode, cache, num_heads, spans);
  }

 protected:
  Backend& inner() { return *inner_; }
  const Backend& inner() const { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace verbatim::kernels

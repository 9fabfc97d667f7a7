// Decode steps: their tables, then their operations, or the graph of an equal step.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cuda {

// All that a step's launches depend on: what the caller promises, and what shapes the tables.
StepGraphs::Key CudaBackend::KeyOf(const DecodeStep& step, const CudaKvCache& cache) const {
  const KvLayout layout = cache.layout();
  const int64_t cut_length =
      AttentionCutLength(step.mode, cache.config(), step.num_heads, step.spans);
  const DecodeCuts cuts = CutsOf(step, cache.config(), cut_length);
  return {static_cast<int64_t>(reinterpret_cast<intptr_t>(step.owner)),
          static_cast<int64_t>(step.mode.policy),
          static_cast<int64_t>(step.mode.activations),
          step.variant,
          step.num_heads,
          step.rows,
          cuts.max_cuts,
          cuts.max_walk_cuts,
          cut_length,
          static_cast<int64_t>(reinterpret_cast<intptr_t>(layout.data)),
          static_cast<int64_t>(layout.bf16),
          layout.num_pages,
          layout.num_kv_heads,
          layout.head_dim,
          layout.page_tokens};
}

std::pair<uint64_t, uint64_t> CudaBackend::Epoch() const {
  return {CudaMatrix::Generation(), expert_tables_->epoch()};
}

std::string CudaBackend::DecodePlan(const DecodeStep& step) const {
  const auto* cache = dynamic_cast<const CudaKvCache*>(step.cache);
  if (cache == nullptr || !Records(step) || !CheckDecodeStep(step).ok()) {
    return absl::StrCat(step.rows, " rows, one operation after the other");
  }
  const DecodeCuts cuts = CutsOf(step, cache->config(), kCutLength);
  const int64_t graph = Epoch() == graphs_epoch_ ? graphs_.NumberOf(KeyOf(step, *cache)) : 0;
  return absl::StrCat(step.rows, " rows of ", std::max(cuts.max_cuts, cuts.max_walk_cuts),
                      graph > 0 ? " cuts, replayed from graph " : " cuts, recorded as graph ",
                      graph > 0 ? graph : graphs_.next_number());
}

void CudaBackend::ForgetDecode() {
  Enter().IgnoreError();  // a device that has failed runs nothing
  graphs_.Clear();
}

absl::Status CudaBackend::RunDecode(const DecodeStep& step,
                                    absl::FunctionRef<absl::Status()> operations) {
  if (absl::Status status = CheckDecodeStep(step); !status.ok()) return status;
  const auto* cache = dynamic_cast<const CudaKvCache*>(step.cache);
  if (cache == nullptr) {
    return absl::InvalidArgumentError("RunDecode: the cache is not one of this backend");
  }
  if (in_step_) return absl::InvalidArgumentError("RunDecode: a decode step within another");
  if (absl::Status status = Enter(); !status.ok()) return status;
  in_step_ = true;
  absl::Status status = UploadStepTables(step, *cache);
  if (status.ok()) status = RunPrepared(step, *cache, operations);
  in_step_ = false;
  // Their tables have padding.
  kv_spans_.Forget();
  attention_spans_.Forget();
  return status;
}

absl::Status CudaBackend::RunPrepared(const DecodeStep& step, const CudaKvCache& cache,
                                      absl::FunctionRef<absl::Status()> operations) {
  if (!Records(step)) return operations();
  const auto drop_stale = [&] {
    if (Epoch() != graphs_epoch_) graphs_.Clear();
    graphs_epoch_ = Epoch();
  };
  drop_stale();
  const StepGraphs::Key key = KeyOf(step, cache);
  if (runtime::Graph* graph = graphs_.Find(key); graph != nullptr) {
    ++replayed_steps_;
    return runtime::LaunchGraph(graph, stream_);
  }
  if (absl::Status status = operations(); !status.ok()) return status;
  drop_stale();  // the operations may have uploaded tables
  uploader_->set_closed(true);
  const absl::Status recorded = graphs_.Record(key, operations);
  uploader_->set_closed(false);
  if (!recorded.ok()) {
    return absl::Status(recorded.code(),
                        absl::StrCat("recording a decode step of ", step.rows,
                                     " rows as a CUDA graph: ", std::string(recorded.message())));
  }
  ++recorded_steps_;
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cuda

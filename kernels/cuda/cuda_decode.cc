// Decode steps: their tables, then their operations, or the graph of an equal step.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cuda {
namespace {

// All that a step's launches depend on: what the caller promises, and what shapes the tables.
StepGraphs::Key KeyOf(const DecodeStep& step, const KvLayout& layout,
                      const AttentionTables& tables) {
  return {static_cast<int64_t>(reinterpret_cast<intptr_t>(step.owner)),
          static_cast<int64_t>(step.mode.policy),
          static_cast<int64_t>(step.mode.activations),
          step.variant,
          step.num_heads,
          step.rows,
          tables.max_cuts,
          tables.max_walk_cuts,
          tables.cut_length,
          static_cast<int64_t>(reinterpret_cast<intptr_t>(layout.data)),
          static_cast<int64_t>(layout.bf16),
          layout.num_pages,
          layout.num_kv_heads,
          layout.head_dim,
          layout.page_tokens};
}

}  // namespace

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
  if (!RecordsDecode() || !step.replayable || step.rows > kMaxGraphRows) return operations();
  const auto drop_stale = [&] {
    const std::pair epoch = {CudaMatrix::Generation(), expert_tables_->epoch()};
    if (epoch != graphs_epoch_) graphs_.Clear();
    graphs_epoch_ = epoch;
  };
  drop_stale();
  const StepGraphs::Key key = KeyOf(step, cache.layout(), tables_);
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

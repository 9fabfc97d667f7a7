// Runs one planned step: gathers rows, forward pass, logits, sampling.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/request_state.h"
#include "engine/routing_record.h"
#include "kernels/backend.h"
#include "model/transformer.h"
#include "scheduler/step_plan.h"

namespace verbatim::engine {

// The numerics class of each policy's kernels. PINNED and PORTABLE share pages, and passes, where
// their numerics ids are equal.
struct PolicyClasses {
  scheduler::NumericsClass pinned = 1;
  scheduler::NumericsClass portable = 1;

  scheduler::NumericsClass Of(kernels::Policy policy) const {
    if (policy == kernels::Policy::kThroughput) return scheduler::kThroughputClass;
    return policy == kernels::Policy::kPinned ? pinned : portable;
  }
};

// One logit row that somebody asked for, and what came of it.
struct RowOutcome {
  SampleState* sample = nullptr;
  int64_t position = 0;        // of the row
  bool is_prompt_row = false;  // a prompt log-probability, not a drawn token
  bool is_claim_row = false;   // recomputes a token of a claim
  kernels::SampledRow sampled;
  // [layers] of the residual row after each layer; empty unless the request wants them traced.
  std::vector<numerics::RowFingerprint> layers;
};

// One forward pass of a step.
struct PassOutcome {
  kernels::NumericMode mode;
  std::vector<int32_t> spans;         // of the plan, in the order of its rows
  std::vector<int32_t> sampled_rows;  // by span: among the pass's logit rows, the one that gave it
                                      // its token; −1: none did
  int32_t logit_rows = 0;
  // Of a mixture of experts, if the runner keeps routing; else null.
  std::shared_ptr<const RoutingRecord> routing;
};

struct StepOutcome {
  // What CommitStep is told: the class of all rows, or kThroughputClass where they went through
  // kernels of several classes, each strong row through its own, or where rows beside the strong
  // ones were subject to capacity limits.
  scheduler::NumericsClass written_by = scheduler::kThroughputClass;
  bool has_strong_rows = false;
  int64_t ride_along_rows = 0;   // throughput rows computed by strong kernels
  std::vector<RowOutcome> rows;  // prompt rows of a span before its sampled row
  std::vector<PassOutcome> passes;
  absl::Duration model_time, sample_time;
};

class StepRunner {
 public:
  StepRunner(kernels::Backend& backend, model::Transformer& transformer, kernels::KvCache& cache,
             kernels::ActivationType throughput_activations, const PolicyClasses& classes);

  // Runs the rows of each class in a pass of their own. Throughput rows have no promise that this
  // could break, so they join a strong pass that costs them little ("ride along"): PINNED's always,
  // PORTABLE's where it is the same code as PINNED's. Fills `outcome`; on error nothing in it may
  // be used.
  absl::Status Run(const scheduler::StepPlan& plan,
                   const std::map<scheduler::SequenceId, SampleState*>& sequences,
                   StepOutcome& outcome);

  // From now on every pass tells which experts its rows had.
  void KeepRouting() { keep_routing_ = true; }

 private:
  // The rows that one forward pass computes.
  struct Pass {
    kernels::NumericMode mode;
    model::ForwardBatch batch;
    std::vector<int32_t> logit_rows;  // rows of the batch
    std::vector<kernels::SamplingRow> sampling_rows;
    std::vector<RowOutcome> rows;  // parallel to logit_rows
    PassOutcome outcome;

    void Clear();
  };

  // The pass that rows of `policy` belong to, in a step with such strong rows.
  Pass& PassOf(kernels::Policy policy, bool has_pinned, bool has_portable);
  void Gather(const scheduler::StepPlan& plan,
              const std::map<scheduler::SequenceId, SampleState*>& sequences, StepOutcome& outcome);
  static void AddSpan(const scheduler::StepPlan& plan, size_t index, SampleState& sample,
                      Pass& pass);
  // Runs the layers, taking fingerprints of the rows whose requests want them.
  absl::Status Forward(Pass& pass);
  absl::Status RunPass(Pass& pass, StepOutcome& outcome);
  absl::Status TakeRouting(PassOutcome& outcome);
  // Fills in the sampling rows of claims among rows [begin, begin + count). Each needs its own
  // token counts, so they are made for one slice at a time.
  void PrepareClaimRows(Pass& pass, size_t begin, size_t count);

  kernels::Backend& backend_;
  model::Transformer& transformer_;
  kernels::KvCache& cache_;
  const PolicyClasses classes_;
  bool keep_routing_ = false;
  Pass throughput_, pinned_, portable_;
  std::vector<kernels::SampledRow> sampled_;
  std::vector<std::vector<kernels::TokenCount>> claim_counts_;  // by row of a slice
};

}  // namespace verbatim::engine

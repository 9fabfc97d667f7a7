// Runs one planned step: gathers rows, forward pass, logits, sampling.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/request_state.h"
#include "kernels/backend.h"
#include "model/transformer.h"
#include "scheduler/step_plan.h"

namespace verbatim::engine {

// The class of every strong policy's kernels: on one backend PINNED and PORTABLE rows share pages
// when their numerics ids are equal, as they are on the CPU.
inline constexpr scheduler::NumericsClass kStrongClass = 1;

// One logit row that somebody asked for, and what came of it.
struct RowOutcome {
  SampleState* sample = nullptr;
  int64_t position = 0;        // of the row
  bool is_prompt_row = false;  // a prompt log-probability, not a drawn token
  kernels::SampledRow sampled;
};

struct StepOutcome {
  scheduler::NumericsClass written_by = scheduler::kThroughputClass;
  int64_t ride_along_rows = 0;   // throughput rows computed by strong kernels
  std::vector<RowOutcome> rows;  // in plan order; prompt rows of a span before its sampled row
  absl::Duration model_time, sample_time;
};

class StepRunner {
 public:
  StepRunner(kernels::Backend& backend, model::Transformer& transformer, kernels::KvCache& cache,
             kernels::ActivationType throughput_activations);

  // A step with any strong row runs all its rows through the strong kernels; throughput rows have
  // no promise that this could break. Fills `outcome`; on error nothing in it may be used.
  absl::Status Run(const scheduler::StepPlan& plan,
                   const std::map<scheduler::SequenceId, SampleState*>& sequences,
                   StepOutcome& outcome);

 private:
  void Gather(const scheduler::StepPlan& plan,
              const std::map<scheduler::SequenceId, SampleState*>& sequences, StepOutcome& outcome);
  absl::Status SampleRows(const kernels::NumericMode& mode, StepOutcome& outcome);

  kernels::Backend& backend_;
  model::Transformer& transformer_;
  kernels::KvCache& cache_;
  const kernels::ActivationType throughput_activations_;
  model::ForwardBatch batch_;
  std::vector<int32_t> logit_rows_;  // row of the batch, parallel to outcome.rows
  std::vector<kernels::SamplingRow> sampling_rows_;
  std::vector<kernels::SampledRow> sampled_;
};

}  // namespace verbatim::engine

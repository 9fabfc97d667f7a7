// Remembers the shapes of steps and who wrote which page, and makes the trace of an answer from it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "engine/step_runner.h"
#include "kernels/backend.h"
#include "model/transformer.h"
#include "scheduler/step_plan.h"
#include "trace/trace.h"

namespace verbatim::engine {

// Every step is remembered while recording is on, not only those of traced requests: any sequence
// may write a page that a traced one reads later. What is kept of a step is one shared table of its
// spans, some hundred bytes, and of a mixture of experts two bytes for each slot of its rows; a
// step without any live sequence or page that came from it is freed.
//
// Kernel choices and cuts are functions of a step's shape, so they are asked for only when a trace
// is made. Lives on the engine's thread.
class TraceRecorder {
 public:
  struct Options {
    int64_t page_tokens = 0;
    int64_t num_pages = 0;
    // Bound of the remembered span tables; beyond it the oldest are forgotten, and answers that
    // need them are marked as not replayable.
    int64_t max_step_bytes = int64_t{256} << 20;
  };

  TraceRecorder(const Options& options, const kernels::Backend& backend,
                const model::Transformer& transformer, const kernels::KvCacheConfig& cache);

  // A forward pass that ran. Traces count passes: a step with rows of several numerics classes is
  // several steps to them.
  void OnPass(const scheduler::StepPlan& plan, const PassOutcome& pass);
  // The plan took the sequence's pages away; it will start again.
  void OnPreempted(scheduler::SequenceId sequence);
  void OnRemoved(scheduler::SequenceId sequence);

  // Fills runs, steps, kernels, preemptions, cached_tokens and not_replayable of the trace of a
  // live sequence, and the configuration that decides bits. Identity, tokens and rows are the
  // caller's.
  void Describe(scheduler::SequenceId sequence, trace::Trace* trace) const;

 private:
  struct StepRecord {
    int64_t number = 0;
    kernels::NumericMode mode;
    std::vector<trace::Span> spans;
    int32_t logit_rows = 0;
    std::shared_ptr<const RoutingRecord> routing;  // null without experts
    bool forgotten = false;                        // spans and routing were dropped to bound memory
  };
  struct Part {
    std::shared_ptr<StepRecord> step;
    int32_t span = 0;
    int32_t logit_index = -1;
    int32_t first_position = 0;
    int32_t rows = 0;
  };
  struct RunRecord {
    // Writers of the pages taken from the cache; null: written before recording began.
    std::vector<std::shared_ptr<RunRecord>> prefix;
    std::vector<Part> parts;
  };
  class TraceBuilder;

  static int64_t BytesOf(const StepRecord& step);

  void LimitMemory();

  const Options options_;
  const kernels::Backend& backend_;
  const model::Transformer& transformer_;
  const kernels::KvCacheConfig cache_;
  int64_t next_step_ = 0;
  std::map<scheduler::SequenceId, std::vector<std::shared_ptr<RunRecord>>> sequences_;
  std::set<scheduler::SequenceId> restarts_;         // preempted, not yet started again
  std::vector<std::shared_ptr<RunRecord>> writers_;  // by page id: who wrote its present content
  std::deque<std::weak_ptr<StepRecord>> steps_;      // in order
  int64_t step_bytes_ = 0;
};

}  // namespace verbatim::engine

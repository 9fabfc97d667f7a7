// Remembers the shapes of steps and who wrote which page, and makes the trace of an answer from it.
#include "engine/trace_recorder.h"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::engine {
namespace {

constexpr int64_t kStepOverheadBytes = 128;

}  // namespace

int64_t TraceRecorder::BytesOf(const StepRecord& step) {
  return static_cast<int64_t>(step.spans.size() * sizeof(trace::Span)) + kStepOverheadBytes +
         (step.routing == nullptr ? 0 : step.routing->size_bytes());
}

TraceRecorder::TraceRecorder(const Options& options, const kernels::Backend& backend,
                             const model::Transformer& transformer,
                             const kernels::KvCacheConfig& cache)
    : options_(options),
      backend_(backend),
      transformer_(transformer),
      cache_(cache),
      writers_(static_cast<size_t>(options.num_pages)) {}

void TraceRecorder::OnPass(const scheduler::StepPlan& plan, const PassOutcome& pass) {
  auto step = std::make_shared<StepRecord>();
  step->number = next_step_++;
  step->mode = pass.mode;
  step->logit_rows = pass.logit_rows;
  step->routing = pass.routing;
  step->spans.reserve(pass.spans.size());
  for (size_t i = 0; i < pass.spans.size(); ++i) {
    const scheduler::ScheduledSpan& span = plan.spans[pass.spans[i]];
    step->spans.push_back({.rows = span.num_tokens, .first_position = span.first_position});
    std::vector<std::shared_ptr<RunRecord>>& runs = sequences_[span.sequence];
    if (runs.empty() || restarts_.erase(span.sequence) > 0) {
      auto run = std::make_shared<RunRecord>();
      const int64_t cached_pages = span.first_position / options_.page_tokens;
      for (int64_t p = 0; p < cached_pages; ++p) run->prefix.push_back(writers_[span.pages[p]]);
      runs.push_back(std::move(run));
    }
    const std::shared_ptr<RunRecord>& run = runs.back();
    run->parts.push_back({.step = step,
                          .span = static_cast<int32_t>(i),
                          .logit_index = pass.sampled_rows[i],
                          .first_position = span.first_position,
                          .rows = span.num_tokens});
    for (size_t p = static_cast<size_t>(span.first_position / options_.page_tokens);
         p < span.pages.size(); ++p) {
      writers_[span.pages[p]] = run;
    }
  }
  step_bytes_ += BytesOf(*step);
  steps_.push_back(step);
  LimitMemory();
}

void TraceRecorder::LimitMemory() {
  if (step_bytes_ <= options_.max_step_bytes) return;
  // Steps that nobody refers to are freed already and only their entries are left. What remains is
  // cut well below the bound, so that this is rare.
  std::erase_if(steps_, [](const auto& step) { return step.expired(); });
  step_bytes_ = 0;
  for (const auto& step : steps_) step_bytes_ += BytesOf(*step.lock());
  for (; step_bytes_ > options_.max_step_bytes / 4 * 3; steps_.pop_front()) {
    const std::shared_ptr<StepRecord> oldest = steps_.front().lock();
    step_bytes_ -= BytesOf(*oldest);
    oldest->spans = {};
    oldest->routing = nullptr;
    oldest->forgotten = true;
  }
}

void TraceRecorder::OnPreempted(scheduler::SequenceId sequence) {
  if (sequences_.contains(sequence)) restarts_.insert(sequence);
}

void TraceRecorder::OnRemoved(scheduler::SequenceId sequence) {
  sequences_.erase(sequence);
  restarts_.erase(sequence);
}

// Collects what a sequence's runs need, page writers before their readers.
class TraceRecorder::TraceBuilder {
 public:
  TraceBuilder(const TraceRecorder& recorder, trace::Trace* trace)
      : recorder_(recorder), trace_(trace) {}

  void Build(const std::vector<std::shared_ptr<RunRecord>>& own) {
    trace_->own_runs = static_cast<int32_t>(own.size());
    for (const auto& run : own) Index(run.get());
    for (const auto& run : own) Need(run.get(), EndOf(*run));
    if (own.empty()) Fail("the sequence was never scheduled");
    // Runs that were found on the way are appended, so this reaches them too.
    for (size_t r = 0; r < runs_.size(); ++r) AddRun(static_cast<int32_t>(r));
    if (!trace_->replayable()) return;
    for (auto& [number, step] : steps_) Finish(std::move(step));
    for (const auto& [policy, activations, logits, rows] : shapes_) {
      const kernels::NumericMode mode = {policy, activations};
      trace_->kernels.push_back(
          {.mode = mode,
           .logits = logits,
           .rows = rows,
           .kernels = recorder_.transformer_.GemmKernels(mode, rows, logits)});
    }
    for (const auto& [activations, tokens] : expert_tokens_) {
      const kernels::NumericMode mode = {kernels::Policy::kThroughput, activations};
      trace_->kernels.push_back({.mode = mode,
                                 .experts = true,
                                 .rows = tokens,
                                 .kernels = recorder_.transformer_.ExpertKernels(mode, tokens)});
    }
  }

 private:
  static int32_t EndOf(const RunRecord& run) {
    return run.parts.empty() ? 0 : run.parts.back().first_position + run.parts.back().rows;
  }

  void Fail(const std::string& why) {
    if (trace_->replayable()) trace_->not_replayable = why;
  }

  int32_t Index(const RunRecord* run) {
    const auto [it, added] = index_.emplace(run, static_cast<int32_t>(runs_.size()));
    if (added) {
      runs_.push_back(run);
      needed_.push_back(0);
    }
    return it->second;
  }

  // The run's positions below `end` are part of the trace, and so is what they were computed from.
  void Need(const RunRecord* run, int32_t end) {
    int32_t& needed = needed_[Index(run)];
    if (needed >= end) return;
    const bool is_new = needed == 0;
    needed = end;
    if (!is_new) return;  // its prefix lies below every end that anybody may need
    const int32_t page_tokens = static_cast<int32_t>(recorder_.options_.page_tokens);
    for (size_t p = 0; p < run->prefix.size(); ++p) {
      if (run->prefix[p] == nullptr)
        return Fail("a cached page was written before recording began");
      Need(run->prefix[p].get(), static_cast<int32_t>(p + 1) * page_tokens);
    }
  }

  void AddRun(int32_t index) {
    const RunRecord& run = *runs_[index];
    trace::Run out;
    out.positions = needed_[index];
    for (size_t p = 0; p < run.prefix.size() && trace_->replayable(); ++p) {
      out.prefix.push_back({.run = Index(run.prefix[p].get()), .page = static_cast<int32_t>(p)});
    }
    trace_->runs.push_back(std::move(out));
    for (const Part& part : run.parts) {
      if (part.first_position >= needed_[index]) break;
      if (part.step->forgotten) {
        return Fail(absl::StrCat("the record of step ", part.step->number,
                                 " was dropped to bound the memory of traces"));
      }
      trace::Step& step = steps_[part.step->number];
      if (step.spans.empty()) {
        step.number = part.step->number;
        step.mode = part.step->mode;
        step.spans = part.step->spans;
        step.logit_rows = part.step->logit_rows;
        routing_[step.number] = part.step->routing.get();
      }
      step.own.push_back({.span = part.span,
                          .run = index,
                          .rows = std::min(part.rows, needed_[index] - part.first_position)});
      if (index < trace_->own_runs && part.logit_index >= 0) step.logit_index = part.logit_index;
    }
  }

  void Finish(trace::Step step) {
    std::sort(step.own.begin(), step.own.end(),
              [](const auto& a, const auto& b) { return a.span < b.span; });
    std::vector<kernels::SequenceSpan> spans;
    int32_t row = 0;
    for (const trace::Span& span : step.spans) {
      spans.push_back(
          {.first_row = row, .num_rows = span.rows, .first_position = span.first_position});
      row += span.rows;
    }
    step.cuts = trace::OwnCuts(
        step, recorder_.backend_.AttentionCuts(step.mode, recorder_.cache_,
                                               recorder_.transformer_.num_heads(), spans));
    // Padding behind a decode step's rows changes no choice (Backend::DecodeRows).
    shapes_.emplace(step.mode.policy, step.mode.activations, false, row);
    if (step.logit_index >= 0) {
      shapes_.emplace(step.mode.policy, step.mode.activations, true,
                      trace::SliceRows(step.logit_rows, step.logit_index,
                                       trace_->configuration.logit_slice_rows));
    }
    AddRouting(step);
    trace_->steps.push_back(std::move(step));
  }

  // Which kernels an expert runs on follows from its tokens in THROUGHPUT only.
  void AddRouting(trace::Step& step) {
    const RoutingRecord* routing = routing_[step.number];
    if (routing == nullptr) return;
    std::vector<int32_t> first_rows;
    int32_t row = 0;
    for (const trace::Span& span : step.spans) {
      first_rows.push_back(row);
      row += span.rows;
    }
    std::vector<std::pair<int32_t, int32_t>> own;
    for (const trace::OwnSpan& span : step.own) {
      own.emplace_back(first_rows[span.span], span.rows);
    }
    step.routing = routing->Of(own);
    if (kernels::IsStrong(step.mode.policy)) return;
    for (const trace::LayerRouting& layer : step.routing) {
      for (const auto& [expert, tokens] : layer.tokens) {
        if (tokens > 0) expert_tokens_.emplace(step.mode.activations, tokens);
      }
    }
  }

  const TraceRecorder& recorder_;
  trace::Trace* const trace_;
  std::map<const RunRecord*, int32_t> index_;
  std::vector<const RunRecord*> runs_;  // by index
  std::vector<int32_t> needed_;         // positions of each
  std::map<int64_t, trace::Step> steps_;
  std::map<int64_t, const RoutingRecord*> routing_;                      // by step
  std::set<std::pair<kernels::ActivationType, int32_t>> expert_tokens_;  // counts that occurred
  std::set<std::tuple<kernels::Policy, kernels::ActivationType, bool, int32_t>> shapes_;
};

void TraceRecorder::Describe(scheduler::SequenceId sequence, trace::Trace* trace) const {
  trace->configuration.page_tokens = static_cast<int32_t>(options_.page_tokens);
  trace->configuration.kv_cache_dtype = cache_.dtype;
  trace->configuration.logit_slice_rows =
      static_cast<int32_t>(transformer_.options().max_logit_rows);
  trace->configuration.max_model_len = static_cast<int32_t>(transformer_.options().max_model_len);
  trace->mixture = MixtureOf(transformer_.config());
  const auto it = sequences_.find(sequence);
  const std::vector<std::shared_ptr<RunRecord>> own =
      it == sequences_.end() ? std::vector<std::shared_ptr<RunRecord>>() : it->second;
  if (!own.empty()) {
    trace->preemptions = static_cast<int32_t>(own.size()) - 1;
    trace->cached_tokens =
        static_cast<int32_t>(own[0]->prefix.size() * static_cast<size_t>(options_.page_tokens));
  }
  TraceBuilder(*this, trace).Build(own);
  if (!trace->replayable()) trace->DropSteps(trace->not_replayable);
}

}  // namespace verbatim::engine

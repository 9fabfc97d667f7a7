// Cost of the scheduler per step: planning, committing and appending tokens, without any model.
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "scheduler/scheduler.h"

namespace verbatim::scheduler {
namespace {

constexpr int64_t kPageTokens = 32;
constexpr int64_t kNewTokens = 512, kNewPages = kNewTokens / kPageTokens;

SchedulerConfig BenchConfig() {
  SchedulerConfig config;
  config.max_num_seqs = 64;
  config.max_num_batched_tokens = 8192;
  config.max_model_len = 1 << 20;
  config.page_tokens = kPageTokens;
  config.num_pages = 64 * 1024;
  config.max_queued_tokens = int64_t{1} << 32;
  return config;
}

SequenceSpec LongRequest(SequenceId id, int64_t prompt_tokens) {
  SequenceSpec spec;
  spec.id = id;
  spec.prompt.assign(prompt_tokens, static_cast<int32_t>(id));
  spec.max_new_tokens = kNewTokens;
  return spec;
}

void Step(Scheduler& scheduler, const StepPlan& plan) {
  scheduler.CommitStep(plan, kThroughputClass);
  for (const ScheduledSpan& span : plan.spans) {
    if (span.samples) scheduler.AppendToken(span.sequence, 1);
  }
}

// `num_seqs` sequences that decode, each with `num_pages` pages.
std::unique_ptr<Scheduler> Decoding(benchmark::State& state, SchedulerConfig config,
                                    int64_t num_seqs, int64_t num_pages) {
  absl::StatusOr<std::unique_ptr<Scheduler>> scheduler = Scheduler::Create(config);
  if (!scheduler.ok()) {
    state.SkipWithError(std::string(scheduler.status().message()).c_str());
    return nullptr;
  }
  for (int64_t i = 0; i < num_seqs; ++i) {
    const absl::Status status = (*scheduler)
                                    ->Add(LongRequest(static_cast<SequenceId>(i + 1),
                                                      num_pages * kPageTokens - i % kPageTokens),
                                          absl::UnixEpoch());
    if (!status.ok()) {
      state.SkipWithError(std::string(status.message()).c_str());
      return nullptr;
    }
  }
  for (;;) {
    const StepPlan plan = (*scheduler)->Plan(absl::UnixEpoch());
    Step(**scheduler, plan);
    if (plan.num_tokens <= num_seqs) break;
  }
  return *std::move(scheduler);
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

enum class Part { kPlan, kWholeStep };

// One decode step of range(0) sequences with about range(1) pages each. They grow by one token a
// step, so the scheduler is rebuilt, outside of the measured time, before that matters.
void DecodeStep(benchmark::State& state, Part part, bool with_blocked_queue) {
  SchedulerConfig config = BenchConfig();
  if (with_blocked_queue) config.num_pages = state.range(0) * (state.range(1) + kNewPages + 1);
  std::unique_ptr<Scheduler> scheduler;
  int64_t steps = 0;
  for (auto _ : state) {
    if (steps++ % 256 == 0) {
      scheduler = Decoding(state, config, state.range(0), state.range(1));
      if (scheduler == nullptr) return;
      if (with_blocked_queue) {
        // One place is free, but the next in the queue wants more pages than there are.
        scheduler->Remove(1);
        const int64_t wanted = state.range(1) + state.range(0) * (kNewPages + 1);
        const absl::Status status =
            scheduler->Add(LongRequest(1, wanted * kPageTokens), absl::UnixEpoch());
        if (!status.ok()) return state.SkipWithError(std::string(status.message()).c_str());
      }
    }
    const auto start = std::chrono::steady_clock::now();
    StepPlan plan = scheduler->Plan(absl::UnixEpoch());
    benchmark::DoNotOptimize(plan);
    double seconds = SecondsSince(start);
    Step(*scheduler, plan);
    if (part == Part::kWholeStep) seconds = SecondsSince(start);
    state.SetIterationTime(seconds);
  }
}

void Shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->Args({1, 100})->Args({16, 100})->Args({64, 10})->Args({64, 100})->UseManualTime();
}
BENCHMARK_CAPTURE(DecodeStep, plan, Part::kPlan, false)->Apply(Shapes);
BENCHMARK_CAPTURE(DecodeStep, plan_behind_blocked_queue, Part::kPlan, true)
    ->Args({16, 100})
    ->Args({64, 100})
    ->UseManualTime();
BENCHMARK_CAPTURE(DecodeStep, plan_commit_append, Part::kWholeStep, false)->Apply(Shapes);

// Adding, planning and committing one prompt of range(0) pages that is cached already.
void CachedPrompt(benchmark::State& state) {
  absl::StatusOr<std::unique_ptr<Scheduler>> scheduler = Scheduler::Create(BenchConfig());
  if (!scheduler.ok()) return state.SkipWithError("no scheduler");
  const SequenceSpec spec = LongRequest(1, state.range(0) * kPageTokens);
  for (auto _ : state) {
    if (!(*scheduler)->Add(spec, absl::UnixEpoch()).ok()) return state.SkipWithError("refused");
    Step(**scheduler, (*scheduler)->Plan(absl::UnixEpoch()));
    (*scheduler)->Remove(1);
  }
}
BENCHMARK(CachedPrompt)->Arg(10)->Arg(100);

}  // namespace
}  // namespace verbatim::scheduler

BENCHMARK_MAIN();

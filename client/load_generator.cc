// The dispatching thread of a load; calls report to it from gRPC's threads.
#include "client/load_generator.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>

namespace verbatim::client {
namespace {

constexpr std::chrono::milliseconds kLookAround{100};

struct Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<CallRecord> records;
  std::vector<bool> ended;
  LoadProgress progress;

  int64_t in_flight() const { return progress.started - progress.finished; }
};

}  // namespace

int64_t LoadResult::completed() const {
  return std::count_if(records.begin(), records.end(),
                       [](const CallRecord& record) { return record.status.ok(); });
}

int64_t LoadResult::output_tokens() const {
  int64_t tokens = 0;
  for (const CallRecord& record : records) tokens += record.output_tokens();
  return tokens;
}

LoadResult RunLoad(Client* client, const std::vector<WorkItem>& items, const LoadOptions& options) {
  Shared shared;
  shared.records.resize(items.size());
  shared.ended.resize(items.size());
  shared.progress.total = static_cast<int64_t>(items.size());
  std::vector<std::shared_ptr<Call>> calls(items.size());

  LoadResult result;
  result.start = Clock::now();
  TimePoint last_start = result.start;
  TimePoint next_look = result.start + kLookAround;
  size_t next = 0;

  std::unique_lock lock(shared.mutex);
  while (true) {
    const TimePoint now = Clock::now();
    if (now >= next_look) {
      next_look = now + kLookAround;
      const LoadProgress progress = shared.progress;
      lock.unlock();
      if (options.progress) options.progress(progress);
      const bool stop = options.interrupted && options.interrupted();
      if (stop && !result.interrupted) {
        result.interrupted = true;
        for (const std::shared_ptr<Call>& call : calls) {
          if (call != nullptr) call->Cancel();
        }
      }
      lock.lock();
    }
    const bool all_started = next == items.size() || result.interrupted;
    if (all_started && shared.in_flight() == 0) break;
    const bool slot = options.max_concurrency == 0 || shared.in_flight() < options.max_concurrency;
    const TimePoint due = all_started || options.closed_loop
                              ? now
                              : result.start + absl::ToChronoNanoseconds(items[next].offset);
    if (!all_started && slot && due <= now) {
      ++shared.progress.started;
      lock.unlock();  // the call may end, and report, before Start returns
      last_start = Clock::now();
      const size_t index = next++;
      calls[index] = client->Start(items[index].request, options.closed_loop ? last_start : due,
                                   nullptr, [&shared, index](CallRecord record) {
                                     const std::lock_guard guard(shared.mutex);
                                     ++shared.progress.finished;
                                     if (!record.status.ok()) ++shared.progress.failed;
                                     shared.progress.output_tokens += record.output_tokens();
                                     shared.ended[index] = true;
                                     shared.records[index] = std::move(record);
                                     shared.changed.notify_one();
                                   });
      lock.lock();
      // A call that has ended need not be kept for cancelling.
      if (shared.ended[index]) calls[index].reset();
      continue;
    }
    const TimePoint wake = !all_started && slot ? std::min(due, next_look) : next_look;
    shared.changed.wait_until(lock, wake);
  }
  result.records = std::move(shared.records);
  lock.unlock();

  result.end = result.start;
  for (size_t i = 0; i < next; ++i) result.end = std::max(result.end, result.records[i].ended);
  const double started_for = SecondsBetween(result.start, last_start);
  if (next > 1 && started_for > 0) {
    result.achieved_rate = static_cast<double>(next - 1) / started_for;
  }
  if (!options.closed_loop && items.size() > 1 && items.back().offset > absl::ZeroDuration()) {
    result.offered_rate =
        static_cast<double>(items.size() - 1) / absl::ToDoubleSeconds(items.back().offset);
  }
  return result;
}

}  // namespace verbatim::client

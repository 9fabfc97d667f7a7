// Sends a list of requests at their times, or as fast as a number of slots allows.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "client/client.h"

namespace verbatim::client {

struct WorkItem {
  v1::GenerateRequest request;
  absl::Duration offset;  // scheduled arrival, from the start of the load; ignored in closed loop
};

struct LoadProgress {
  int64_t started = 0, finished = 0, failed = 0, total = 0;
  int64_t output_tokens = 0;
};

struct LoadOptions {
  // Requests in flight at once; 0: no limit.
  int64_t max_concurrency = 0;
  // Closed loop: a request is due when a slot becomes free, and its latency counts from there.
  // Open loop: it is due at its offset, and the wait for a slot is part of its latency.
  bool closed_loop = false;
  // Cancels what is in flight and starts nothing more when it returns true; asked several times a
  // second.
  std::function<bool()> interrupted;
  // Called several times a second, on the caller's thread.
  std::function<void(const LoadProgress&)> progress;
};

struct LoadResult {
  // records[i] belongs to items[i]; an item that was never started keeps its default status.
  std::vector<CallRecord> records;
  TimePoint start, end;  // until the last call ended
  bool interrupted = false;
  double offered_rate = 0;   // requests per second of the schedule; 0 in closed loop
  double achieved_rate = 0;  // requests per second actually started

  double seconds() const { return SecondsBetween(start, end); }
  int64_t completed() const;      // ended with OK
  int64_t output_tokens() const;  // of all calls
};

// Sends all items, in the order given; offsets must ascend. Returns when every call has ended.
LoadResult RunLoad(Client* client, const std::vector<WorkItem>& items, const LoadOptions& options);

}  // namespace verbatim::client

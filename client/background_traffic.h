// Requests that nobody looks at, so that those somebody looks at share their batches.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "client/client.h"

namespace verbatim::client {

// What the other requests look like.
struct BackgroundShape {
  std::vector<std::string> prompts;  // empty: words in random order, 5 to 120 of them
  int64_t max_tokens = 64;           // output lengths vary from 8 (or this, if less) to this
  v1::Determinism determinism = v1::DETERMINISM_THROUGHPUT;
};

// One request: a prompt as plain text, temperature 0.8 with a seed, no end before its length.
v1::GenerateRequest BackgroundRequest(const BackgroundShape& shape, std::mt19937_64* random);

// One prompt a line; empty lines are skipped. NOT_FOUND or INVALID_ARGUMENT naming the file.
absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& path);

struct BackgroundFigures {
  int64_t arrivals = 0;
  int64_t left_out = 0;               // arrivals that found max_concurrency requests in flight
  int64_t completed = 0, failed = 0;  // what Stop() cancels counts as neither
  int64_t output_tokens = 0;
  double seconds = 0;
  std::string first_error;
};

// Sends requests with Poisson arrivals from its construction to Stop(). An arrival that finds
// max_concurrency requests in flight is left out, so that a slow server is not buried under a
// backlog.
class BackgroundTraffic {
 public:
  struct Options {
    BackgroundShape shape;
    double rate_per_second = 0;  // 0: sends nothing
    int64_t max_concurrency = 16;
    uint64_t seed = 0;
  };

  BackgroundTraffic(Client* client, const Options& options);
  ~BackgroundTraffic() { Stop(); }
  BackgroundTraffic(const BackgroundTraffic&) = delete;
  BackgroundTraffic& operator=(const BackgroundTraffic&) = delete;

  // Returns after `count` arrivals, or `at_most` later, or at once when nothing is sent.
  void WaitForArrivals(int64_t count, absl::Duration at_most);

  // Cancels what is in flight, waits until all of it has ended, and returns what was sent.
  BackgroundFigures Stop();

 private:
  void Run();
  void Ended(int64_t id, const CallRecord& record);

  Client* const client_;
  const Options options_;
  const TimePoint start_ = Clock::now();
  std::mt19937_64 random_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::map<int64_t, std::shared_ptr<Call>> in_flight_;  // null until Start() has returned
  BackgroundFigures figures_;
  std::thread thread_;
};

}  // namespace verbatim::client

// Latencies, counts and rates of a load.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/goodput.h"
#include "client/statistics.h"

namespace verbatim::client {

// All times are in milliseconds and count from the moment a request was due.
struct BenchFigures {
  int64_t requests = 0, completed = 0, failed = 0;
  int64_t good = 0;  // completed and within every objective
  int64_t input_tokens = 0, cached_input_tokens = 0, output_tokens = 0;  // of completed requests

  std::vector<double> ttft_ms;  // completed requests with a token
  std::vector<double> tpot_ms;  // completed requests with two tokens: (e2el - ttft) / (tokens - 1)
  std::vector<double> itl_ms;   // gaps between messages with tokens, of all completed requests
  std::vector<double> e2el_ms;  // completed requests
  std::vector<double> client_queue_time_ms;  // due to sent, completed requests

  // A call that was never started counts as nothing.
  void Add(const CallRecord& record, const Goodput& goodput);

  // By its name in --percentile-metrics: "ttft", "tpot", "itl", "e2el", "client_queue_time" or
  // "e2el_including_client_queue", which is the same as "e2el" here.
  const std::vector<double>& Metric(const std::string& name) const;
};

// Mean time per output token after the first, in ms; 0 for fewer than two tokens.
double TimePerOutputTokenMs(const CallRecord& record);

// Most output tokens of completed calls in any of the seconds counted from the first start.
double PeakOutputTokensPerSecond(const std::vector<CallRecord>& records);

// Most completed calls that were open at one moment; one that ends as another begins does not
// overlap it.
int64_t PeakConcurrency(const std::vector<CallRecord>& records);

}  // namespace verbatim::client

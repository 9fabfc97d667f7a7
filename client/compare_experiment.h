// One prompt many times in throughput mode and in a deterministic mode, among other traffic.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/background_traffic.h"
#include "client/client.h"
#include "client/completions.h"

namespace verbatim::client {

struct CompareOptions {
  v1::GenerateRequest request;  // the compared one; its determinism is set by the mode
  v1::Determinism deterministic_policy = v1::DETERMINISM_PINNED;
  int64_t repeats = 20;     // of the request, in each mode
  int64_t concurrency = 4;  // of them in flight at once
  int64_t blocks = 2;       // the modes take turns this often; at most `repeats`
  int64_t num_warmups = 1;  // untimed requests in each mode before the first block
  // What else is on the server. A block has the same arrivals in both modes.
  BackgroundTraffic::Options background = {.rate_per_second = 4};
};

// What one mode did, over all blocks.
struct CompareMode {
  std::string key;  // "throughput" or "deterministic"
  v1::Determinism determinism = v1::DETERMINISM_UNSPECIFIED;
  std::string numerics_id;
  Completions completions;
  int64_t requests = 0;  // that completed
  int64_t failed = 0;
  std::string first_error;
  int64_t without_hash = 0;   // answers for which the server sent no logit hash
  int64_t output_tokens = 0;  // of the compared requests, as is `seconds`
  double seconds = 0;
  std::vector<double> ttft_ms, itl_ms;
  BackgroundFigures background;

  double tokens_per_s() const {
    return seconds > 0 ? static_cast<double>(output_tokens) / seconds : 0;
  }
  // Every request answered, with one logit hash and one text.
  bool same_every_time() const {
    return failed == 0 && without_hash == 0 && requests > 0 &&
           completions.unique_logit_hashes() == 1 && completions.unique_completions() == 1;
  }
};

struct CompareResult {
  CompareMode throughput, deterministic;
  v1::GetModelInfoResponse model;
  v1::GetServerInfoResponse server;
};

// FAILED_PRECONDITION with the server's reason when it does not honour the policy; CANCELLED on
// Ctrl-C. Requests that fail are counted, not returned. `say` gets progress lines.
absl::StatusOr<CompareResult> RunCompareExperiment(
    Client* client, const CompareOptions& options,
    const std::function<void(const std::string&)>& say);

}  // namespace verbatim::client

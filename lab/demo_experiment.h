// The demonstration's experiment: the same prompts many times, in several modes, among other
// traffic.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/client.h"
#include "client/completions.h"
#include "client/step_statistics.h"

namespace verbatim::lab {

struct DemoOptions {
  std::string model;
  std::string server_binary;  // empty: this program
  std::string device = "cpu";
  std::vector<std::string> prompts;
  int64_t repeats = 20;  // of each prompt, in each mode
  int64_t max_tokens = 32;
  int64_t concurrency = 16;
  double background_share = 0.3;  // background requests for each measured one
  double request_rate = 0;        // arrivals per second; 0: twice what the server can serve
  int64_t blocks = 3;             // the modes take turns this many times
  uint64_t seed = 1;
  bool chat = true;                   // prompts are user messages; else plain text
  bool disable_prefix_cache = false;  // every request computes all its positions
};

// One way to serve the prompts.
struct DemoMode {
  std::string key;    // in the JSON
  std::string title;  // for people
  bool float32_server = false;
  v1::Determinism determinism = v1::DETERMINISM_THROUGHPUT;
  bool alone = false;  // one request in flight, nothing else on the server
  // Of the other traffic, where it is not that of the measured requests.
  std::optional<v1::Determinism> background;

  v1::Determinism neighbours() const { return background.value_or(determinism); }
};

// throughput, throughput_float32, deterministic, one_at_a_time.
std::vector<DemoMode> DemoModes();

struct DemoModeResult {
  DemoMode mode;
  std::string numerics_id;
  std::vector<client::Completions> prompts;  // one each, in their order
  int64_t requests = 0;                      // measured ones that completed
  int64_t failed = 0;                        // measured or background
  std::string first_error;
  int64_t background_requests = 0;
  int64_t output_tokens = 0;  // measured and background
  double seconds = 0;
  std::vector<double> block_tokens_per_s;
  std::vector<double> ttft_ms, itl_ms;  // of measured requests; TTFT from the moment of sending
  client::StepTotals steps;

  double tokens_per_s() const { return seconds > 0 ? output_tokens / seconds : 0; }
  int64_t unique_completions_max() const;
  int64_t unique_completions_total() const;  // summed over prompts
  int64_t unique_logit_hashes_max() const;
  double unique_completions_mean() const;
  double unique_logit_hashes_mean() const;
  int64_t prompts_that_split() const;  // prompts with more than one completion
  std::optional<int64_t> first_divergence_token() const;
};

struct DemoResult {
  DemoOptions options;
  double request_rate = 0;  // as used
  double ready_seconds = 0;
  double wall_seconds = 0;
  v1::GetModelInfoResponse model;
  v1::GetServerInfoResponse server;  // of the bfloat16 server
  std::vector<DemoModeResult> modes;

  const DemoModeResult& Mode(const std::string& key) const;
  // Quotient of the pooled rates, and block by block.
  double Ratio(const std::string& over, const std::string& under) const;
  std::vector<double> BlockRatios(const std::string& over, const std::string& under) const;
};

// Starts two servers (bfloat16 and float32 activations in throughput mode), runs every mode in
// alternating blocks and stops the servers. `say` gets progress lines. CANCELLED on Ctrl-C.
absl::StatusOr<DemoResult> RunDemoExperiment(const DemoOptions& options,
                                             const std::function<void(const std::string&)>& say);

}  // namespace verbatim::lab

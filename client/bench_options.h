// The flags of `verbatim bench`; names and meanings follow `vllm bench serve`.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "client/arrivals.h"
#include "client/command.h"
#include "client/dataset.h"
#include "client/goodput.h"
#include "client/sampling_flags.h"
#include "flags/flag_set.h"

namespace verbatim::client {

struct BenchOptions {
  ConnectionFlags connection;

  // Traffic.
  double request_rate = std::numeric_limits<double>::infinity();
  double burstiness = 1;
  std::optional<int64_t> max_concurrency;
  std::string ramp_up_strategy;
  std::optional<double> ramp_up_start_rps, ramp_up_end_rps;
  int64_t num_warmups = 0;

  // Requests.
  DatasetOptions dataset;
  std::string dataset_name = "random";
  std::optional<int64_t> input_len, output_len;
  v1::Determinism determinism = v1::DETERMINISM_UNSPECIFIED;
  std::optional<double> deterministic_fraction;
  std::string request_id_prefix = "bench-";
  SamplingFlags sampling;

  // Report.
  std::vector<std::string> goodput_texts, metadata_texts;
  std::string percentile_metrics_text = "ttft,tpot,itl,e2el", metric_percentiles_text = "99";
  bool disable_tqdm = false, save_result = false, save_detailed = false, append_result = false;
  std::string result_dir, result_filename, label;

  // Filled by Check().
  std::optional<RampUp> ramp_up;
  Goodput goodput;
  std::vector<std::string> percentile_metrics;
  std::vector<double> percentiles;
  std::vector<std::pair<std::string, std::string>> metadata;

  // The flags write into `this`, which must outlive the set.
  flags::FlagSet Flags();
  // Checks every value and fills what follows from them.
  absl::Status Check(const std::vector<std::string>& positional);

  // All requests are due at once and wait for a slot of --max-concurrency.
  bool closed_loop() const;
  // The policy of requests that belong to the deterministic share, and of the others.
  v1::Determinism strong_policy() const;
  v1::Determinism other_policy() const;
};

// Latencies that --percentile-metrics may name.
const std::vector<std::string>& BenchMetricNames();

}  // namespace verbatim::client

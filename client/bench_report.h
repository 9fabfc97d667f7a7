// The result of `verbatim bench`: as a table and as JSON with the names of `vllm bench serve`.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/bench_options.h"
#include "client/dataset.h"
#include "client/load_generator.h"
#include "client/step_statistics.h"
#include "nlohmann/json.hpp"

namespace verbatim::client {

// Everything a report is made of. `items[i]` and `policies[i]` belong to `load.records[i]`.
struct BenchRun {
  absl::Time date;
  v1::GetModelInfoResponse model;
  v1::GetServerInfoResponse server;
  std::vector<DatasetItem> items;
  std::vector<v1::Determinism> policies;  // as asked for
  LoadResult load;
  StepTotals steps;  // what the server did meanwhile, for this load and any other
};

nlohmann::json BenchJson(const BenchOptions& options, const BenchRun& run);

// Made from the JSON, so that both say the same.
std::string BenchTable(const BenchOptions& options, const nlohmann::json& report);

// Folder and name of the result file.
std::string BenchResultPath(const BenchOptions& options, const nlohmann::json& report);

}  // namespace verbatim::client

// Two receipts as input of `explain`: what their requests and answers differ in.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "receipt/comparison.h"
#include "receipt/receipt.h"
#include "trace/trace.h"

namespace verbatim::replay {

// The files that `explain` was given, by what they hold, each kind in the order given.
struct InputFiles {
  std::vector<std::string> receipt_paths, trace_paths;
  std::vector<receipt::Receipt> receipts;
  std::vector<trace::Trace> traces;
};

// Reads files that are receipts (docs/receipts.md) or traces (docs/replay.md). NOT_FOUND for a file
// that cannot be read, INVALID_ARGUMENT naming file and field for one that is malformed, is
// neither, or whose checksums contradict it.
absl::StatusOr<InputFiles> ReadInputFiles(const std::vector<std::string>& paths);

// INVALID_ARGUMENT naming what differs, unless the trace is of the receipt's answer.
absl::Status CheckTraceBelongs(const trace::Trace& trace, const receipt::Receipt& receipt);

std::string ComparisonText(const InputFiles& files, const receipt::Comparison& comparison);
nlohmann::json ComparisonJson(const InputFiles& files, const receipt::Comparison& comparison);

}  // namespace verbatim::replay

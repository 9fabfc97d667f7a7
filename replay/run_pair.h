// Two traced answers to one prompt: alone, and among other requests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/tokenizer.h"
#include "trace/trace.h"

namespace verbatim::replay {

struct RunPairOptions {
  engine::EngineConfig engine;
  std::vector<int32_t> prompt;
  int64_t max_tokens = 64;
  bool ignore_eos = false;
  int32_t neighbours = 16;  // requests at once beside the prompt's
  int32_t attempts = 8;     // other neighbours are tried so often
  uint64_t seed = 1;        // of the neighbours' tokens, lengths and times
};

struct RunPair {
  std::shared_ptr<trace::Trace> alone, loaded;
  int32_t attempts = 0;  // that were made
};

// Generates the prompt greedily alone, then again and again among random neighbours, until the
// tokens differ; if they never do, the first attempt with other logit bits is returned, or the last
// one if there was none. `weights_sha256` goes into the traces. `progress` (may be empty) hears a
// line an attempt.
absl::StatusOr<RunPair> RunAloneAndLoaded(const RunPairOptions& options,
                                          std::unique_ptr<kernels::Backend> backend,
                                          const model::Checkpoint& checkpoint,
                                          const model::Tokenizer& tokenizer,
                                          const std::string& weights_sha256,
                                          const std::function<void(const std::string&)>& progress);

}  // namespace verbatim::replay

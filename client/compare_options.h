// The flags of `verbatim compare`.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/command.h"
#include "client/compare_experiment.h"
#include "client/prompt_flags.h"
#include "client/sampling_flags.h"
#include "flags/flag_set.h"

namespace verbatim::client {

struct CompareFlags {
  ConnectionFlags connection;
  PromptFlags prompt;
  SamplingFlags sampling;
  CompareOptions options;
  std::string background_prompts_file, json_file;

  // The flags write into `this`, which must outlive the set.
  flags::FlagSet Flags();
  // Checks all values, reads the files they name and fills `options` but for the prompt.
  absl::Status Check(const std::vector<std::string>& positional);
};

}  // namespace verbatim::client

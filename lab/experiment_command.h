// The frame of a lab command: progress lines, result files, and flags without other arguments.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "client/command.h"
#include "flags/flag_set.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

// A line of progress on standard error.
void Say(const std::string& line);

// Writes `data` to `output` and `page` to `page_path`, each unless its path is empty, and says so
// on standard output. UNAVAILABLE naming the file.
absl::Status WriteResults(const nlohmann::json& data, const std::string& output,
                          const std::string& page, const std::string& page_path);

// Runs a command whose Flags have Set(), the flags, and Resolve(), which checks them. `run` takes
// the flags and returns the exit status or what went wrong.
template <class Flags, class Run>
int RunExperimentCommand(const std::string& name, Flags& flags, Run&& run, int argc, char** argv) {
  flags::FlagSet set = flags.Set();
  return client::RunCommand({.name = name,
                             .flags = &set,
                             .check =
                                 [&](const auto& positional) {
                                   absl::Status status = client::CheckNoArguments(positional);
                                   return status.ok() ? flags.Resolve() : status;
                                 },
                             .run = [&] { return run(flags); }},
                            argc, argv);
}

}  // namespace verbatim::lab

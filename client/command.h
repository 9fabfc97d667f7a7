// The frame of a client command: flags, help, messages and exit status.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"
#include "flags/flag_set.h"

namespace verbatim::client {

// INVALID_ARGUMENT "--flag: what".
absl::Status BadFlag(const std::string& flag, const std::string& what);

// OK when low <= value <= high, else an error naming flag and range. NaN lies in no range.
absl::Status CheckRange(const std::string& flag, int64_t value, int64_t low, int64_t high);
absl::Status CheckRange(const std::string& flag, double value, double low, double high);

// OK when 0 < value <= high.
absl::Status CheckPositive(const std::string& flag, double value, double high);

// The first error of several.
absl::Status FirstError(std::initializer_list<absl::Status> statuses);

// OK for a command without positional arguments.
absl::Status CheckNoArguments(const std::vector<std::string>& positional);

// --target and --connect-timeout-s.
struct ConnectionFlags {
  std::string target = "127.0.0.1:50051";
  double connect_timeout_s = 10;

  void Register(flags::FlagSet* flags);
  absl::Status Check() const;
  // CANCELLED on Ctrl-C.
  absl::StatusOr<std::unique_ptr<Client>> Connect() const;
};

struct Command {
  std::string name;  // "generate"; begins every message
  flags::FlagSet* flags = nullptr;
  // Checks the values of the flags and the positional arguments; an error is bad usage.
  std::function<absl::Status(const std::vector<std::string>& positional)> check;
  // The exit status, or what went wrong. Ctrl-C sets Interrupted() while it runs.
  std::function<absl::StatusOr<int>()> run;
};

// Parses, checks and runs. Returns the exit status: that of `run`, 0 after --help, 1 when `run`
// failed, 2 for bad usage; errors are printed to standard error.
int RunCommand(const Command& command, int argc, char** argv);

}  // namespace verbatim::client

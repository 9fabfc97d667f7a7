// Parsing, checking and running a client command.
#include "client/command.h"

#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "client/interrupt.h"

namespace verbatim::client {
namespace {

constexpr double kLongestTimeout = 86400;

}  // namespace

absl::Status BadFlag(const std::string& flag, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", what));
}

absl::Status CheckRange(const std::string& flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return BadFlag(flag, absl::StrCat(value, " is not in [", low, ", ", high, "]"));
}

absl::Status CheckRange(const std::string& flag, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  if (std::isinf(high)) return BadFlag(flag, absl::StrCat(value, " is not at least ", low));
  return BadFlag(flag, absl::StrCat(value, " is not in [", low, ", ", high, "]"));
}

absl::Status CheckPositive(const std::string& flag, double value, double high) {
  if (value > 0 && value <= high) return absl::OkStatus();
  return BadFlag(flag, absl::StrCat(value, " is not in (0, ", high, "]"));
}

absl::Status FirstError(std::initializer_list<absl::Status> statuses) {
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckNoArguments(const std::vector<std::string>& positional) {
  if (positional.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("'", positional.front(), "': unexpected argument; see --help"));
}

void ConnectionFlags::Register(flags::FlagSet* flags) {
  flags->Group("Server");
  flags->Add("target", &target, "HOST:PORT of the server");
  flags->Add("connect-timeout-s", &connect_timeout_s, "seconds to wait for the server");
}

absl::Status ConnectionFlags::Check() const {
  if (target.empty()) return BadFlag("target", "is empty");
  return CheckRange("connect-timeout-s", connect_timeout_s, 0, kLongestTimeout);
}

absl::StatusOr<std::unique_ptr<Client>> ConnectionFlags::Connect() const {
  return Client::Connect(target, absl::Seconds(connect_timeout_s), [] {
    return Interrupted() ? absl::CancelledError("interrupted") : absl::OkStatus();
  });
}

int RunCommand(const Command& command, int argc, char** argv) {
  const auto say = [&command](const std::string& message) {
    std::fflush(stdout);
    std::fprintf(stderr, "verbatim %s: %s\n", command.name.c_str(), message.c_str());
  };
  const auto positional = command.flags->Parse(argc, argv);
  if (positional.ok() && command.flags->help_requested()) {
    std::fputs(command.flags->Help().c_str(), stdout);
    return 0;
  }
  const absl::Status usage = positional.ok() ? command.check(*positional) : positional.status();
  if (!usage.ok()) {
    say(std::string(usage.message()));
    return 2;
  }
  CatchInterrupts();
  const absl::StatusOr<int> exit_status = command.run();
  if (exit_status.ok()) return *exit_status;
  say(Describe(exit_status.status()));
  return 1;
}

}  // namespace verbatim::client

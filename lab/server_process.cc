// Starting, watching and stopping the server's process.
#include "lab/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/interrupt.h"

namespace verbatim::lab {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(10);
constexpr absl::Duration kPatience = absl::Seconds(5);

std::string LastLines(const std::string& text, int lines) {
  size_t from = text.size();
  for (int i = 0; i <= lines && from != std::string::npos && from > 0; ++i) {
    from = text.rfind('\n', from - 1);
  }
  return from == std::string::npos ? text : text.substr(from);
}

// Only calls that are allowed between fork and exec in a process with threads.
[[noreturn]] void BecomeServer(char* const* argv, int log, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  setpgid(0, 0);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  execv(argv[0], argv);
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(
    const std::string& binary, const std::vector<std::string>& flags, absl::Duration timeout,
    const std::function<void(const std::string&)>& progress) {
  std::unique_ptr<ServerProcess> server(new ServerProcess());
  std::string directory =
      (std::filesystem::temp_directory_path() / "verbatim-server-XXXXXX").string();
  if (mkdtemp(directory.data()) == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot make the directory ", directory, ": ", std::strerror(errno)));
  }
  server->directory_ = directory;

  std::vector<std::string> arguments = {binary.empty() ? "/proc/self/exe" : binary, "serve"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  for (const std::string& extra : {std::string("--host=127.0.0.1"), std::string("--port=0"),
                                   absl::StrCat("--port-file=", directory, "/port")}) {
    arguments.push_back(extra);
  }
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);

  const int log =
      open(absl::StrCat(directory, "/log").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (log < 0) return absl::UnavailableError(absl::StrCat("cannot write to ", directory));
  const pid_t parent = getpid();
  server->pid_ = fork();
  if (server->pid_ == 0) BecomeServer(argv.data(), log, parent);
  const int fork_error = errno;
  close(log);
  if (server->pid_ < 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot start a process: ", std::strerror(fork_error)));
  }
  if (absl::Status status = server->WaitUntilReady(timeout, progress); !status.ok()) {
    return status;
  }
  return server;
}

absl::Status ServerProcess::WaitUntilReady(
    absl::Duration timeout, const std::function<void(const std::string&)>& progress) {
  const absl::Time start = absl::Now();
  const absl::Time deadline = start + timeout;
  absl::Time next_progress = start + absl::Seconds(1);
  const std::string port_file = absl::StrCat(directory_, "/port");
  std::string port;
  while (port.empty()) {
    if (absl::Status status = StillWorthWaiting(); !status.ok()) return status;
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("the server is not ready after ",
                                                      absl::FormatDuration(timeout), EndOfLog()));
    }
    if (progress && absl::Now() >= next_progress) {
      next_progress += absl::Seconds(1);
      progress(absl::StrCat("server loading, ", absl::FormatDuration(absl::Floor(
                                                    absl::Now() - start, absl::Seconds(1)))));
    }
    std::ifstream(port_file) >> port;
    if (port.empty()) absl::SleepFor(kPoll);
  }
  auto client = client::Client::Connect(absl::StrCat("127.0.0.1:", port), deadline - absl::Now(),
                                        [this] { return StillWorthWaiting(); });
  if (!client.ok()) return client.status();
  client_ = *std::move(client);
  ready_seconds_ = absl::ToDoubleSeconds(absl::Now() - start);
  return absl::OkStatus();
}

absl::Status ServerProcess::StillWorthWaiting() {
  if (client::Interrupted()) return absl::CancelledError("interrupted");
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return absl::OkStatus();
  pid_ = -1;
  const std::string how = WIFEXITED(status) ? absl::StrCat("with exit status ", WEXITSTATUS(status))
                                            : absl::StrCat("by signal ", WTERMSIG(status));
  return absl::UnavailableError(absl::StrCat("the server ended ", how, EndOfLog()));
}

std::string ServerProcess::EndOfLog() const {
  std::ifstream file(absl::StrCat(directory_, "/log"));
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return text.empty() ? "" : absl::StrCat("; it said:\n", LastLines(text, 10));
}

void ServerProcess::Stop() {
  client_.reset();
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    const absl::Time deadline = absl::Now() + kPatience;
    while (waitpid(pid_, nullptr, WNOHANG) == 0) {
      if (absl::Now() >= deadline) {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        break;
      }
      absl::SleepFor(kPoll);
    }
    pid_ = -1;
  }
  if (!directory_.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
    directory_.clear();
  }
}

ServerProcess::~ServerProcess() { Stop(); }

}  // namespace verbatim::lab

// A server started for an experiment and stopped with it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"

namespace verbatim::lab {

// The child gets a process group of its own, so that Ctrl-C reaches only the experiment, and is
// ended by the kernel if the experiment dies.
class ServerProcess {
 public:
  // Runs `binary serve FLAGS --port 0 --port-file …` (an empty `binary` is this very program) and
  // waits until it answers. What the server prints goes to a file, whose end is part of the error
  // when the server does not come up. `progress` is called about once a second with what is waited
  // for.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(
      const std::string& binary, const std::vector<std::string>& flags, absl::Duration timeout,
      const std::function<void(const std::string&)>& progress);

  ~ServerProcess();  // stops the server
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // Asks the server to stop; after five seconds kills it. Does nothing the second time.
  void Stop();

  client::Client* client() { return client_.get(); }
  double ready_seconds() const { return ready_seconds_; }  // from start of the process to an answer

 private:
  ServerProcess() = default;

  absl::Status WaitUntilReady(absl::Duration timeout,
                              const std::function<void(const std::string&)>& progress);
  // OK while the server runs and nobody interrupted the experiment.
  absl::Status StillWorthWaiting();
  std::string EndOfLog() const;

  pid_t pid_ = -1;
  std::string directory_;  // holds the log and the port file
  double ready_seconds_ = 0;
  std::unique_ptr<client::Client> client_;
};

}  // namespace verbatim::lab

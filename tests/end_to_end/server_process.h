// The real binary as a child process, for tests over loopback.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "grpcpp/channel.h"
#include "grpcpp/support/status.h"
#include "verbatim/v1/verbatim.grpc.pb.h"

namespace verbatim::end_to_end {

// How a request for one sample ended.
struct Answer {
  grpc::Status status;
  v1::Finished finished;
};

class ServerProcess {
 public:
  // Starts `verbatim serve --port 0 …` and waits until it is ready or has ended. With a launcher
  // (an absolute path and its arguments) that is started with the command.
  explicit ServerProcess(std::vector<std::string> flags, std::vector<std::string> launcher = {});
  // Kills it if it still runs.
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  bool ready() const { return !address_.empty(); }
  const std::string& address() const { return address_; }
  std::shared_ptr<grpc::Channel> channel() const { return channel_; }
  v1::VerbatimService::Stub& stub() const { return *stub_; }

  // Generate, read to its end.
  Answer Ask(const v1::GenerateRequest& request) const;
  void Signal(int signal) const;
  pid_t pid() const { return pid_; }  // the launcher's, where there is one
  // Waits for its end; the exit status, or −signal.
  int Wait();
  // All that it wrote to stderr; after Wait().
  const std::string& log() const { return log_; }

 private:
  pid_t pid_ = -1;
  int stderr_fd_ = -1;
  std::string log_, address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::VerbatimService::Stub> stub_;
};

// The process of a rank among the launcher's children, or −1.
pid_t ProcessOfRank(pid_t launcher, int rank);

// grpc.health.v1.Health/Check: the status in the answer (1 SERVING, 2 NOT_SERVING), or −1.
int CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service);

// grpc.health.v1.Health/Watch: an open stream of what Check would answer.
class HealthWatch {
 public:
  explicit HealthWatch(const std::shared_ptr<grpc::Channel>& channel);
  ~HealthWatch();
  // Waits for the next status; −1 once the stream has ended.
  int Next();

 private:
  struct Call;
  std::unique_ptr<Call> call_;
};

// The names that server reflection lists.
std::string ListServices(const std::shared_ptr<grpc::Channel>& channel);

}  // namespace verbatim::end_to_end

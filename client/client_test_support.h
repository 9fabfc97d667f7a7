// A service in this process for tests of the client.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "client/client.h"
#include "verbatim/v1/verbatim.grpc.pb.h"

namespace verbatim::client {

// Streams as many one-token deltas as max_tokens says. A prompt of "fail" is refused, "hang" goes
// on until it is cancelled, "unfinished" ends without a usage message.
class FakeService : public v1::VerbatimService::Service {
 public:
  // Policies whose answers alternate between two texts, which split at token 3, and two hashes.
  std::atomic<bool> throughput_moves{false}, strong_moves{false};
  std::atomic<bool> sends_hashes{true}, honours_pinned{true};

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;
  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest* request,
                             v1::GetServerInfoResponse* response) override;
  // 1000 tokens in the vocabulary, 999 of which ends a text; a context of 2048; no chat template.
  grpc::Status GetModelInfo(grpc::ServerContext* context, const v1::GetModelInfoRequest* request,
                            v1::GetModelInfoResponse* response) override;
  // One token a word of `text`.
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override;

  int most_in_flight() const { return most_in_flight_; }
  int cancelled() const { return cancelled_; }
  std::vector<v1::GenerateRequest> requests();  // all so far

 private:
  grpc::Status Stream(grpc::ServerContext* context, const v1::GenerateRequest& request,
                      grpc::ServerWriter<v1::GenerateResponse>* writer);

  std::atomic<int> in_flight_{0}, most_in_flight_{0}, cancelled_{0};
  std::mutex mutex_;
  std::vector<v1::GenerateRequest> requests_;
  std::map<v1::Determinism, int64_t> answers_;  // to prompts other than "fail" and "hang"
};

// A FakeService on a port of loopback.
class FakeServer {
 public:
  FakeServer();
  ~FakeServer();

  FakeService& service() { return service_; }
  const std::string& target() const { return target_; }
  std::unique_ptr<Client> Connect() const;

 private:
  FakeService service_;
  std::unique_ptr<grpc::Server> server_;
  std::string target_;
};

struct CommandOutput {
  int exit_status = 0;
  std::string out, err;
};

// Runs a command of the client in this process.
CommandOutput RunCaptured(int (*command)(int, char**), std::vector<std::string> arguments);

}  // namespace verbatim::client

// The listening gRPC server: port, health v1, reflection, shutdown.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/server.h"

namespace verbatim::server {

struct GrpcServerOptions {
  std::string host = "127.0.0.1";  // empty: no port, in-process channels only
  int32_t port = 0;                // 0: one that is free
  int max_receive_message_bytes = 16 << 20;
};

class GrpcServer {
 public:
  // Listens; health answers SERVING. `service` must outlive the server. UNAVAILABLE when the
  // address cannot be had (another process on the port counts).
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options,
                                                           grpc::Service* service);
  ~GrpcServer();

  int32_t port() const { return port_; }
  const std::string& address() const { return address_; }  // "127.0.0.1:50051"

  // Health answers NOT_SERVING from now on; calls still arrive.
  void SetNotServing();
  // Stops listening, lets calls end until `deadline`, then cancels them. Returns when all have
  // ended.
  void Shutdown(absl::Time deadline);

  std::shared_ptr<grpc::Channel> InProcessChannel();

 private:
  GrpcServer() = default;
  std::unique_ptr<grpc::Server> server_;
  int32_t port_ = 0;
  std::string address_;
};

}  // namespace verbatim::server

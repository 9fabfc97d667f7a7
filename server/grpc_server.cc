// Builds, runs and stops the gRPC server.
#include "server/grpc_server.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace verbatim::server {
namespace {
constexpr char kServiceName[] = "verbatim.v1.VerbatimService";
}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options,
                                                              grpc::Service* service) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> out(new GrpcServer);
  const bool is_ipv6 = options.host.find(':') != std::string::npos && options.host[0] != '[';
  const std::string host = is_ipv6 ? absl::StrCat("[", options.host, "]") : options.host;

  grpc::ServerBuilder builder;
  if (!host.empty()) {
    builder.AddListeningPort(absl::StrCat(host, ":", options.port),
                             grpc::InsecureServerCredentials(), &out->port_);
  }
  builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(options.max_receive_message_bytes);
  // Two servers on one port would each get some of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Clients that vanished without closing are noticed, so that their pages come back.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  out->server_ = builder.BuildAndStart();
  if (out->server_ == nullptr || (!host.empty() && out->port_ == 0)) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", host, ":", options.port,
                                               ": the address is in use or not this machine's"));
  }
  if (auto* health = out->server_->GetHealthCheckService()) {
    health->SetServingStatus(kServiceName, true);  // besides "", the server as a whole
  }
  out->address_ = absl::StrCat(host, ":", out->port_);
  return out;
}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) Shutdown(absl::Now());
}

void GrpcServer::SetNotServing() {
  if (auto* health = server_->GetHealthCheckService()) health->SetServingStatus(false);
}

void GrpcServer::Shutdown(absl::Time deadline) {
  server_->Shutdown(absl::ToChronoTime(deadline));
  server_->Wait();
}

std::shared_ptr<grpc::Channel> GrpcServer::InProcessChannel() {
  return server_->InProcessChannel(grpc::ChannelArguments());
}

}  // namespace verbatim::server

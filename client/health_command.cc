// The health check, as an orchestrator's probe runs it.
#include "client/health_command.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <future>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/command.h"
#include "flags/flag_set.h"

namespace verbatim::client {
namespace {

constexpr char kMethod[] = "/grpc.health.v1.Health/Check";
// HealthCheckResponse{status: SERVING} on the wire: field 1, a varint, of 1.
constexpr char kServing[] = "\x08\x01";

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

absl::StatusOr<bool> CheckHealth(const std::string& target, absl::Duration timeout) {
  grpc::GenericStub stub(grpc::CreateChannel(target, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  const grpc::Slice empty;  // HealthCheckRequest without a service: the whole server
  const grpc::ByteBuffer request(&empty, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, kMethod, grpc::StubOptions(), &request, &response,
                 [&done](grpc::Status status) { done.set_value(std::move(status)); });
  const grpc::Status status = done.get_future().get();
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrCat(target, ": ", status.error_message()));
  }
  return BytesOf(response) == kServing;
}

int RunHealth(int argc, char** argv) {
  std::string target = "127.0.0.1:50051";
  double timeout_s = 5;
  flags::FlagSet flags("verbatim health [flags]",
                       "Asks a server whether it takes requests (gRPC health checking protocol). "
                       "Exit status 0 if it does, 1 if it does not or cannot be reached.");
  flags.Add("target", &target, "HOST:PORT of the server");
  flags.Add("timeout-s", &timeout_s, "seconds to wait for the answer");
  return RunCommand({.name = "health",
                     .flags = &flags,
                     .check =
                         [&](const auto& positional) {
                           return FirstError({CheckNoArguments(positional),
                                              CheckPositive("timeout-s", timeout_s, 3600)});
                         },
                     .run = [&]() -> absl::StatusOr<int> {
                       const auto serving = CheckHealth(target, absl::Seconds(timeout_s));
                       if (!serving.ok()) return serving.status();
                       std::printf("%s\n", *serving ? "SERVING" : "NOT_SERVING");
                       return *serving ? 0 : 1;
                     }},
                    argc, argv);
}

}  // namespace verbatim::client

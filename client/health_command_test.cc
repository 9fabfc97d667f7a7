// The health check against a server of this process.
#include "client/health_command.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <gtest/gtest.h>

#include <memory>

#include "absl/strings/str_cat.h"

namespace verbatim::client {
namespace {

TEST(HealthCommand, TellsWhetherTheServerTakesRequests) {
  grpc::EnableDefaultHealthCheckService(true);
  int port = 0;
  grpc::ServerBuilder builder;
  grpc::CallbackGenericService any;  // a server of callbacks needs no completion queue of ours
  builder.RegisterCallbackGenericService(&any);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  const std::string target = absl::StrCat("127.0.0.1:", port);
  const auto check = [&] { return CheckHealth(target, absl::Seconds(30)); };
  EXPECT_EQ(check().value(), true);
  server->GetHealthCheckService()->SetServingStatus(false);
  EXPECT_EQ(check().value(), false);
  server->Shutdown();
  const auto gone = check();
  EXPECT_FALSE(gone.ok());
  EXPECT_EQ(std::string(gone.status().message()).rfind(target, 0), 0u) << gone.status();
}

TEST(HealthCommand, BadUsageIsTwo) {
  char name[] = "health", flag[] = "--timeout-s=0";
  char* arguments[] = {name, flag};
  EXPECT_EQ(RunHealth(2, arguments), 2);
}

}  // namespace
}  // namespace verbatim::client

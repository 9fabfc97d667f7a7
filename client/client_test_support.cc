// The fake service.
#include "client/client_test_support.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace verbatim::client {

grpc::Status FakeService::Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                                   grpc::ServerWriter<v1::GenerateResponse>* writer) {
  const int now = ++in_flight_;
  int seen = most_in_flight_;
  while (now > seen && !most_in_flight_.compare_exchange_weak(seen, now)) {
  }
  grpc::Status status = Stream(context, *request, writer);
  --in_flight_;
  return status;
}

grpc::Status FakeService::Stream(grpc::ServerContext* context, const v1::GenerateRequest& request,
                                 grpc::ServerWriter<v1::GenerateResponse>* writer) {
  const v1::Determinism policy = request.determinism() == v1::DETERMINISM_UNSPECIFIED
                                     ? v1::DETERMINISM_THROUGHPUT
                                     : request.determinism();
  const bool strong = policy != v1::DETERMINISM_THROUGHPUT;
  bool other = false;
  {
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
    other = (strong ? strong_moves : throughput_moves) && answers_[policy]++ % 2 == 1;
  }
  if (request.text() == "fail") {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "text: no");
  }
  v1::GenerateResponse response;
  response.mutable_accepted()->set_numerics_id("id");
  response.mutable_accepted()->set_determinism(policy);
  response.mutable_accepted()->set_prompt_tokens(
      request.has_token_ids() ? request.token_ids().ids_size() : 5);
  writer->Write(response);
  const bool hang = request.text() == "hang";
  for (int64_t i = 0; hang || i < request.sampling().max_tokens(); ++i) {
    const int64_t token = other && i >= 3 ? i + 1 : i;
    response.mutable_delta()->set_text(absl::StrCat(token % 10));
    response.mutable_delta()->clear_token_ids();
    response.mutable_delta()->add_token_ids(static_cast<int32_t>(token));
    if (!writer->Write(response) || context->IsCancelled()) {
      ++cancelled_;
      return grpc::Status::CANCELLED;
    }
  }
  response.mutable_finished()->set_logits_sha256(!sends_hashes ? "" : other ? "other" : "hash");
  writer->Write(response);
  if (request.text() == "unfinished") return grpc::Status::OK;
  response.mutable_usage()->set_output_tokens(request.sampling().max_tokens());
  response.mutable_usage()->set_cached_prompt_tokens(2);
  writer->Write(response);
  return grpc::Status::OK;
}

grpc::Status FakeService::GetServerInfo(grpc::ServerContext* /*context*/,
                                        const v1::GetServerInfoRequest* /*request*/,
                                        v1::GetServerInfoResponse* response) {
  response->set_version("fake");
  response->set_backend("none");
  response->set_default_determinism(v1::DETERMINISM_THROUGHPUT);
  v1::PolicyInfo* pinned = response->add_policies();
  pinned->set_determinism(v1::DETERMINISM_PINNED);
  pinned->set_honoured(honours_pinned);
  if (!honours_pinned) pinned->set_refusal("no pins here");
  return grpc::Status::OK;
}

grpc::Status FakeService::GetModelInfo(grpc::ServerContext* /*context*/,
                                       const v1::GetModelInfoRequest* /*request*/,
                                       v1::GetModelInfoResponse* response) {
  response->set_served_model_name("fake/model");
  response->set_vocab_size(1000);
  response->add_eos_token_ids(999);
  response->set_max_model_len(2048);
  response->set_chat_family("unknown");
  return grpc::Status::OK;
}

grpc::Status FakeService::Tokenize(grpc::ServerContext* /*context*/,
                                   const v1::TokenizeRequest* request,
                                   v1::TokenizeResponse* response) {
  for (const absl::string_view word : absl::StrSplit(request->text(), ' ', absl::SkipEmpty())) {
    response->add_ids(static_cast<int32_t>(word.size()));
  }
  return grpc::Status::OK;
}

std::vector<v1::GenerateRequest> FakeService::requests() {
  const std::lock_guard lock(mutex_);
  return requests_;
}

FakeServer::FakeServer() {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service_);
  server_ = builder.BuildAndStart();
  target_ = absl::StrCat("127.0.0.1:", port);
}

FakeServer::~FakeServer() { server_->Shutdown(); }

std::unique_ptr<Client> FakeServer::Connect() const {
  auto client = Client::Connect(target_, absl::Seconds(30));
  EXPECT_TRUE(client.ok()) << client.status();
  return client.ok() ? *std::move(client) : nullptr;
}

CommandOutput RunCaptured(int (*command)(int, char**), std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "command");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  CommandOutput output;
  output.exit_status = command(static_cast<int>(argv.size()), argv.data());
  output.out = testing::internal::GetCapturedStdout();
  output.err = testing::internal::GetCapturedStderr();
  return output;
}

}  // namespace verbatim::client

// Dispatch of the service's methods: parse, check, work where it may take its time, answer.
#include "server/generation_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "server/generate_call.h"
#include "server/grpc_wire.h"
#include "server/parse_error.h"
#include "server/unary_calls.h"
#include "server/verify_call.h"

namespace verbatim::server {
namespace {

template <typename Request>
absl::StatusOr<Request> Parse(const grpc::ByteBuffer& buffer) {
  const std::string bytes = BytesOf(buffer);
  Request request;
  if (!request.ParseFromString(bytes)) return DescribeParseError(*Request::descriptor(), bytes);
  return request;
}

grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* call, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

// Parses and checks on this thread; works here if that is quick, else on a text worker.
template <typename Request, typename Check, typename Work>
grpc::ServerUnaryReactor* RunTextCall(const ServiceContext* context,
                                      grpc::CallbackServerContext* call,
                                      const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response,
                                      Check check, Work work) {
  absl::StatusOr<Request> request = Parse<Request>(bytes);
  if (!request.ok()) return FinishNow(call, request.status());
  if (absl::Status status = check(*request, *context); !status.ok()) {
    return FinishNow(call, status);
  }
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  const bool is_quick = static_cast<int64_t>(bytes.Length()) <= context->inline_text_bytes;
  // Shared, because a std::function must be copyable.
  auto held = std::make_shared<Request>(*std::move(request));
  auto job = [context, response, reactor, held, work] {
    auto result = work(*held, *context);
    if (result.ok()) *response = Serialize(*result);
    reactor->Finish(ToGrpcStatus(result.status()));
  };
  if (is_quick) {
    job();
  } else if (!context->text_workers->TrySchedule(std::move(job))) {
    reactor->Finish(
        ToGrpcStatus(absl::ResourceExhaustedError("too many long texts wait to be processed")));
  }
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* call, const grpc::ByteBuffer* request) {
  return GenerateCall::Start(context_, call, *request);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* call,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return RunTextCall<v1::TokenizeRequest>(context_, call, *request, response, CheckTokenize,
                                          server::Tokenize);
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* call,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return RunTextCall<v1::DetokenizeRequest>(context_, call, *request, response, CheckDetokenize,
                                            server::Detokenize);
}

grpc::ServerUnaryReactor* GenerationService::GetModelInfo(grpc::CallbackServerContext* call,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  if (auto parsed = Parse<v1::GetModelInfoRequest>(*request); !parsed.ok()) {
    return FinishNow(call, parsed.status());
  }
  *response = Serialize(context_->model_info);
  return FinishNow(call, absl::OkStatus());
}

grpc::ServerUnaryReactor* GenerationService::GetServerInfo(grpc::CallbackServerContext* call,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  if (auto parsed = Parse<v1::GetServerInfoRequest>(*request); !parsed.ok()) {
    return FinishNow(call, parsed.status());
  }
  *response = Serialize(server::GetServerInfo(*context_));
  return FinishNow(call, absl::OkStatus());
}

grpc::ServerUnaryReactor* GenerationService::VerifyReceipt(grpc::CallbackServerContext* call,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  return VerifyCall::Start(context_, call, *request, response);
}

}  // namespace verbatim::server

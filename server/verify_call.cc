// The life of one VerifyReceipt call: read, check, submit, answer.
#include "server/verify_call.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "receipt/receipt_message.h"
#include "server/grpc_wire.h"
#include "server/parse_error.h"
#include "server/receipt_check.h"

namespace verbatim::server {
namespace {

// No receipt that fits the context is larger, even with each of its numbers on an indented line:
// a token takes two of them, and sampling parameters at their bounds, escaped, 500 KiB. What is
// larger need not wait in memory to be read.
int64_t MaxRequestBytes(const ServiceContext& service) {
  return (int64_t{1} << 19) + 128 * service.limits.max_model_len;
}

}  // namespace

grpc::ServerUnaryReactor* VerifyCall::Start(ServiceContext* service,
                                            grpc::CallbackServerContext* context,
                                            const grpc::ByteBuffer& request,
                                            grpc::ByteBuffer* response) {
  std::shared_ptr<VerifyCall> call(new VerifyCall(service, context, response));
  call->self_ = call;
  call->Begin(request);
  return call.get();  // alive until OnDone(), which comes after this returns
}

void VerifyCall::Begin(const grpc::ByteBuffer& request) {
  if (service_->draining) {
    return Finish(ToGrpcStatus(absl::UnavailableError("the server is shutting down")));
  }
  if (service_->receipts == nullptr) {
    return Finish(ToGrpcStatus(
        absl::FailedPreconditionError("receipts are turned off on this server (--no-receipts)")));
  }
  const int64_t size = static_cast<int64_t>(request.Length());
  if (const int64_t most = MaxRequestBytes(*service_); size > most) {
    return Finish(ToGrpcStatus(absl::FailedPreconditionError(
        absl::StrCat("receipt: ", size, " bytes; one that fits max_model_len ",
                     service_->limits.max_model_len, " has at most ", most))));
  }
  const std::string bytes = BytesOf(request);
  auto message = std::make_shared<v1::VerifyReceiptRequest>();
  if (!message->ParseFromString(bytes)) {
    return Finish(ToGrpcStatus(DescribeParseError(*v1::VerifyReceiptRequest::descriptor(), bytes)));
  }
  if (static_cast<int64_t>(bytes.size()) <= service_->inline_text_bytes) return Read(*message);
  if (!service_->text_workers->TrySchedule(
          [self = shared_from_this(), message] { self->Read(*message); })) {
    Finish(ToGrpcStatus(absl::ResourceExhaustedError("too many long texts wait to be processed")));
  }
}

void VerifyCall::Read(const v1::VerifyReceiptRequest& request) {
  if (request.has_canonical_json()) {
    absl::StatusOr<receipt::Parsed> parsed = receipt::ParseReceipt(request.canonical_json());
    if (!parsed.ok()) return Finish(ToGrpcStatus(parsed.status()));
    return Check(*parsed);
  }
  if (!request.has_receipt()) {
    return Finish(ToGrpcStatus(
        absl::InvalidArgumentError("input: one of receipt and canonical_json must be set")));
  }
  absl::StatusOr<receipt::Receipt> receipt = receipt::FromMessage(request.receipt());
  if (!receipt.ok()) return Finish(ToGrpcStatus(receipt.status()));
  Check({*std::move(receipt), std::nullopt});
}

void VerifyCall::Check(const receipt::Parsed& parsed) {
  const ReceiptIssuer& receipts = *service_->receipts;
  if (!CheckItself(parsed, receipts.public_key(), /*optional_key=*/true, &report_) ||
      !CheckIdentity(parsed.receipt, receipts.identity(), *service_->engine, &report_)) {
    return Answer();
  }
  const size_t tokens =
      parsed.receipt.prompt_token_ids.size() + parsed.receipt.output_token_ids.size();
  if (static_cast<int64_t>(tokens) > service_->limits.max_model_len) {
    return Finish(ToGrpcStatus(absl::FailedPreconditionError(
        absl::StrCat("receipt: its ", tokens, " tokens exceed max_model_len ",
                     service_->limits.max_model_len, " of this server"))));
  }
  engine::GenerationRequest request = ToRequest(parsed.receipt);
  if (context_->deadline() != std::chrono::system_clock::time_point::max()) {
    request.deadline = absl::FromChrono(context_->deadline());
  }
  absl::StatusOr<engine::RequestId> id =
      service_->engine->Submit(std::move(request), shared_from_this());
  if (!id.ok()) {
    return Finish(ToGrpcStatus(absl::Status(
        id.status().code(), absl::StrCat("receipt: ", std::string(id.status().message())))));
  }
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    engine_id_ = *id;
    cancelled = cancelled_;
  }
  if (cancelled) service_->engine->Cancel(*id);
}

void VerifyCall::Answer() {
  *response_ = Serialize(report_);
  Finish(grpc::Status::OK);
}

void VerifyCall::OnVerified(const engine::VerificationEvent& event) { verdict_ = event; }

void VerifyCall::OnDone(absl::Status status, engine::UsageEvent usage) {
  if (status.ok() && !verdict_.has_value()) status = absl::InternalError("no verdict came");
  if (!status.ok()) return Finish(ToGrpcStatus(status));
  Conclude(*verdict_, usage, &report_);
  Answer();
}

void VerifyCall::OnCancel() {
  std::optional<engine::RequestId> id;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    id = engine_id_;
  }
  if (id.has_value()) service_->engine->Cancel(*id);
}

void VerifyCall::OnDone() { self_.reset(); }

}  // namespace verbatim::server

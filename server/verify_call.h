// One VerifyReceipt call: between gRPC's reactor and the engine's verdict.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/generation.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "receipt/canonical.h"
#include "server/service_context.h"

namespace verbatim::server {

// gRPC and the engine each hold the call until they have made their last call to it. Nothing here
// blocks; receipts that take long to read are read by a text worker.
class VerifyCall final : public grpc::ServerUnaryReactor,
                         public engine::ResponseSink,
                         public std::enable_shared_from_this<VerifyCall> {
 public:
  // `service` must outlive the call, `response` is gRPC's.
  static grpc::ServerUnaryReactor* Start(ServiceContext* service,
                                         grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer& request,
                                         grpc::ByteBuffer* response);

  // From gRPC.
  void OnCancel() override;
  void OnDone() override;

  // From the engine's thread.
  void OnPromptLogprobs(std::vector<engine::PositionLogprobs>) override {}
  void OnDelta(engine::DeltaEvent) override {}
  void OnFinished(engine::FinishedEvent) override {}
  void OnVerified(const engine::VerificationEvent& event) override;
  void OnDone(absl::Status status, engine::UsageEvent usage) override;

 private:
  VerifyCall(ServiceContext* service, grpc::CallbackServerContext* context,
             grpc::ByteBuffer* response)
      : service_(service), context_(context), response_(response) {}

  void Begin(const grpc::ByteBuffer& request);
  void Read(const v1::VerifyReceiptRequest& request);
  void Check(const receipt::Parsed& parsed);
  void Answer();

  ServiceContext* const service_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  std::shared_ptr<VerifyCall> self_;  // gRPC's hold

  // Used in turn by the thread that prepares the request and the engine's.
  v1::VerifyReceiptResponse report_;
  std::optional<engine::VerificationEvent> verdict_;

  std::mutex mutex_;
  std::optional<engine::RequestId> engine_id_;  // guarded by mutex_
  bool cancelled_ = false;                      // guarded by mutex_
};

}  // namespace verbatim::server

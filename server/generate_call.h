// One Generate call: between gRPC's reactor and the engine's events.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/generation.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "server/response_queue.h"
#include "server/service_context.h"

namespace verbatim::server {

// gRPC and the engine each hold the call until they have made their last call to it; it lives as
// long as either. At most one write is in flight; what comes meanwhile waits in the queue, merged.
// Nothing here blocks.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public engine::ResponseSink,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // The reactor of a call that has just arrived. `service` must outlive it.
  static grpc::ServerWriteReactor<grpc::ByteBuffer>* Start(ServiceContext* service,
                                                           grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer& request);

  // From gRPC.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // From the engine's thread.
  void OnPromptLogprobs(std::vector<engine::PositionLogprobs> positions) override;
  void OnDelta(engine::DeltaEvent event) override;
  void OnFinished(engine::FinishedEvent event) override;
  void OnDone(absl::Status status, engine::UsageEvent usage) override;

  // Starts the next write, or finishes, if it is time.
  void Pump();

 private:
  GenerateCall(ServiceContext* service, grpc::CallbackServerContext* context);

  void Begin(const grpc::ByteBuffer& request);
  void Tokenize();
  void Submit();
  void AskForReceipts();
  // Answers from the response cache if it can; otherwise `sink` becomes what Submit() shall pass to
  // the engine.
  bool AnswerFromCache(v1::Accepted& accepted, std::shared_ptr<engine::ResponseSink>& sink);
  void Fail(const absl::Status& status);  // before the engine has the request
  void EndSlowReader();
  void PumpSoon();

  ServiceContext* const service_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<GenerateCall> self_;  // gRPC's hold

  // Used in turn by the thread that prepares the request.
  v1::GenerateRequest request_;
  engine::GenerationRequest prepared_;

  std::mutex mutex_;
  ResponseQueue queue_;  // guarded by mutex_, as all below
  std::optional<engine::RequestId> engine_id_;
  std::optional<absl::Status> terminal_;  // set once nothing more will be queued
  bool accepted_ = false;                 // Accepted is queued: writing may begin
  bool cancelled_ = false;                // the client is gone
  bool writing_ = false;
  bool pump_pending_ = false;  // the write thread will pump
  bool finish_called_ = false;
  grpc::ByteBuffer out_;  // the message being written
};

}  // namespace verbatim::server

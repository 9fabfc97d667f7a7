// The gRPC service verbatim.v1.VerbatimService.
#pragma once

#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "server/service_context.h"
#include "verbatim/v1/verbatim.grpc.pb.h"

namespace verbatim::server {

// Requests arrive as bytes and are parsed here: what does not parse then gets an error that names
// the field.
using RawService = v1::VerbatimService::WithRawCallbackMethod_Generate<
    v1::VerbatimService::WithRawCallbackMethod_Tokenize<
        v1::VerbatimService::WithRawCallbackMethod_Detokenize<
            v1::VerbatimService::WithRawCallbackMethod_GetModelInfo<
                v1::VerbatimService::WithRawCallbackMethod_GetServerInfo<
                    v1::VerbatimService::WithRawCallbackMethod_VerifyReceipt<
                        v1::VerbatimService::Service>>>>>>;

// No method blocks; long texts are tokenised by the context's text workers.
class GenerationService final : public RawService {
 public:
  // The context must outlive the server that this service is registered with.
  explicit GenerationService(ServiceContext* context) : context_(context) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* call,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* call,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* call,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* call,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* call,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* VerifyReceipt(grpc::CallbackServerContext* call,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;

 private:
  ServiceContext* const context_;
};

}  // namespace verbatim::server

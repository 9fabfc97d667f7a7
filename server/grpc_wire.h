// Between protobuf messages, absl::Status and gRPC's byte buffers.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

namespace verbatim::server {

// The one place where a Status becomes a gRPC status: same code, message cut to what fits into the
// trailing headers.
grpc::Status ToGrpcStatus(const absl::Status& status);

std::string BytesOf(const grpc::ByteBuffer& buffer);
grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message);

}  // namespace verbatim::server

// Conversions at the edge to gRPC.
#include "server/grpc_wire.h"

#include <vector>

#include "model/utf8.h"

namespace verbatim::server {
namespace {
// Headers are limited to 8 KiB, and each byte outside printable ASCII takes three there.
constexpr size_t kMaxMessageBytes = 1500;
}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view whole = status.message();
  const absl::string_view front = whole.substr(0, kMaxMessageBytes);
  std::string text;
  // A character that the cut went through is left out.
  model::AppendUtf8({front.data(), front.size()}, /*final=*/front.size() == whole.size(), &text);
  if (front.size() < whole.size()) text += "…";
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), text);
}

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::string bytes;
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return bytes;
  bytes.reserve(buffer.Length());
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace verbatim::server

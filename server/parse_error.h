// Says what is wrong with bytes that protobuf refuses to parse.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "google/protobuf/descriptor.h"

namespace verbatim::server {

// INVALID_ARGUMENT for bytes that do not parse as a message of this type: the first string field
// that is not UTF-8, by its path ("sampling.stop[2]: not valid UTF-8 at byte 17"), or that the
// encoding itself is broken. gRPC's own answer to such bytes is UNIMPLEMENTED without a message.
absl::Status DescribeParseError(const google::protobuf::Descriptor& descriptor,
                                const std::string& bytes);

}  // namespace verbatim::server

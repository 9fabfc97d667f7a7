// `verbatim health`: whether a server takes requests, by the gRPC health checking protocol.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace verbatim::client {

// Whether the server says SERVING (grpc.health.v1.Health/Check for the whole server). UNAVAILABLE
// or DEADLINE_EXCEEDED naming the target when no answer comes.
absl::StatusOr<bool> CheckHealth(const std::string& target, absl::Duration timeout);

// Exit status 0 if the server takes requests, 1 if it does not or cannot be reached, 2 for bad
// usage.
int RunHealth(int argc, char** argv);

}  // namespace verbatim::client

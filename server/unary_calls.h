// The calls that answer with one message, apart from gRPC.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/service_context.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::server {

inline constexpr int64_t kMaxTokenizeTextBytes = 1 << 20;
inline constexpr int kMaxDetokenizeIds = 1 << 17;

// Tokenize and Detokenize check first, and do the work, which may take long, in a second function.
absl::Status CheckTokenize(const v1::TokenizeRequest& request, const ServiceContext& context);
absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                              const ServiceContext& context);
absl::Status CheckDetokenize(const v1::DetokenizeRequest& request, const ServiceContext& context);
absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                  const ServiceContext& context);

v1::GetServerInfoResponse GetServerInfo(const ServiceContext& context);

// Policies in force, with their numerics ids or refusals.
void FillPolicies(const engine::Engine& engine, v1::GetServerInfoResponse* response);

}  // namespace verbatim::server

// Makes the receipts of finished samples.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/generation.h"
#include "receipt/receipt.h"
#include "receipt/signature.h"

namespace verbatim::server {

// What a receipt says of the server that issues it.
struct ReceiptIdentity {
  std::string server_version;
  std::string model;  // the name it is served under
  std::string weights_sha256, tokenizer_sha256;
};

// Immutable, thread-safe.
class ReceiptIssuer {
 public:
  // With a key, receipts are signed.
  explicit ReceiptIssuer(ReceiptIdentity identity,
                         std::optional<receipt::SigningKey> key = std::nullopt)
      : identity_(std::move(identity)), key_(std::move(key)) {}

  const ReceiptIdentity& identity() const { return identity_; }
  // Null when receipts are not signed.
  const receipt::PublicKey* public_key() const {
    return key_.has_value() ? &key_->public_key() : nullptr;
  }

  // The receipt of one sample of `request`; `event` has its record. INTERNAL when it cannot be
  // signed.
  absl::StatusOr<receipt::Receipt> Issue(const engine::GenerationRequest& request,
                                         const std::string& numerics_id,
                                         const engine::FinishedEvent& event) const;

 private:
  const ReceiptIdentity identity_;
  const std::optional<receipt::SigningKey> key_;
};

}  // namespace verbatim::server

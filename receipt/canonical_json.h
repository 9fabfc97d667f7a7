// Pieces of the canonical form that its writer and its parser share.
#pragma once

#include <string>

#include "nlohmann/json.hpp"
#include "receipt/receipt.h"

namespace verbatim::receipt {

inline constexpr char kSignatureAlgorithm[] = "ed25519";

// The 32 hex digits of a row fingerprint.
std::string RowHex(const numerics::RowFingerprint& row);

// The member "checksums" of a receipt, from its other members.
nlohmann::json Checksums(const nlohmann::json& receipt);

}  // namespace verbatim::receipt

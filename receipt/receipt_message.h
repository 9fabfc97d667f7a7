// Receipts on the wire.
#pragma once

#include "absl/status/statusor.h"
#include "receipt/canonical.h"
#include "receipt/receipt.h"
#include "verbatim/v1/receipt.pb.h"

namespace verbatim::receipt {

v1::Receipt ToMessage(const Receipt& receipt);

// Holds the message to the rules of ParseReceipt, with the same errors.
absl::StatusOr<Receipt> FromMessage(const v1::Receipt& message);

}  // namespace verbatim::receipt

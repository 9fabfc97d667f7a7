// The steps of verifying a receipt: what it says of itself, whether this model and engine could
// have made it, and what the recomputation found.
#pragma once

#include "engine/engine.h"
#include "receipt/canonical.h"
#include "receipt/signature.h"
#include "server/receipt_issuer.h"
#include "verbatim/v1/receipt.pb.h"

namespace verbatim::server {

// Each step adds its checks to `report` and returns whether all passed; after the first failure the
// report names what differs, and no further step may follow.

// Checksums, the chain of row fingerprints, and the signature against `key`. Without a key, or with
// `optional_key` and a receipt that this key did not sign, the signature is skipped.
bool CheckItself(const receipt::Parsed& parsed, const receipt::PublicKey* key, bool optional_key,
                 v1::VerifyReceiptResponse* report);

// Weights, tokenizer, contract version, policy and numerics id against this server's.
bool CheckIdentity(const receipt::Receipt& receipt, const ReceiptIdentity& identity,
                   const engine::Engine& engine, v1::VerifyReceiptResponse* report);

// The request that recomputes the receipt; to be submitted after both checks passed.
engine::GenerationRequest ToRequest(const receipt::Receipt& receipt);

// The verdict of the engine; sets `verified`.
bool Conclude(const engine::VerificationEvent& event, const engine::UsageEvent& usage,
              v1::VerifyReceiptResponse* report);

}  // namespace verbatim::server

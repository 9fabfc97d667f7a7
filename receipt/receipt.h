// What an answer was computed from and what came out, so that anyone with the model can check it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/numerics/row_fingerprint.h"

namespace verbatim::receipt {

inline constexpr int64_t kReceiptVersion = 1;
inline constexpr int64_t kContractVersion = 1;  // of docs/numerics.md

// Sampling parameters as resolved: no field is left to a default.
struct Sampling {
  float temperature = 1.0f;
  int64_t top_k = 0;  // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  std::vector<std::pair<int64_t, float>> logit_bias;  // ascending token ids
  int64_t n = 1;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  bool ignore_eos = false;
  int64_t max_tokens = 0;  // as given, or what the context left
  int64_t min_tokens = 0;
  bool skip_special_tokens = true;
  bool include_stop_str_in_output = false;

  friend bool operator==(const Sampling&, const Sampling&) = default;
};

// Empty: not signed.
struct Signature {
  std::string key_id;  // 32 hex digits: KeyId() of the public key
  std::string value;   // 128 hex digits: Ed25519 over SignedBytes()

  bool empty() const { return key_id.empty() && value.empty(); }
  friend bool operator==(const Signature&, const Signature&) = default;
};

// One finished sample of a request with policy "pinned" or "portable".
struct Receipt {
  int64_t receipt_version = kReceiptVersion;
  int64_t contract_version = kContractVersion;
  std::string server_version;                    // of the software that issued it; decides nothing
  std::string model;                             // the name it was served under; decides nothing
  std::string weights_sha256, tokenizer_sha256;  // 64 hex digits
  std::string policy;                            // "pinned" or "portable"
  std::string numerics_id;

  std::vector<int64_t> prompt_token_ids;
  Sampling sampling;
  uint64_t seed = 0;  // given or drawn
  int64_t sample_index = 0;

  std::vector<int64_t> output_token_ids;  // with a terminating EOS
  std::string finish_reason;              // "stop" or "length"
  std::string stop_reason;                // the stop string or decimal stop token id, or empty
  // Of the raw logits that each output token was drawn from, and their chain (engine::LogitsHash).
  std::vector<numerics::RowFingerprint> row_fingerprints;
  std::string logits_sha256;

  Signature signature;

  friend bool operator==(const Receipt&, const Receipt&) = default;
};

}  // namespace verbatim::receipt

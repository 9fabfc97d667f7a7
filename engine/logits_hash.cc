// The logit hash of an answer: SHA-256 chained over the fingerprints of its raw logit rows.
#include "engine/logits_hash.h"

#include <openssl/sha.h>

#include <cstring>
#include <string_view>

#include "absl/strings/escaping.h"

namespace verbatim::engine {

LogitsHash::LogitsHash() {
  constexpr std::string_view kDomain = "verbatim logits v1";
  SHA256(reinterpret_cast<const uint8_t*>(kDomain.data()), kDomain.size(), state_.data());
}

void LogitsHash::Add(const numerics::RowFingerprint& row) {
  std::array<uint8_t, 48> message;
  std::memcpy(message.data(), state_.data(), 32);
  for (int i = 0; i < 8; ++i) {
    message[32 + i] = static_cast<uint8_t>(row.a >> (8 * i));
    message[40 + i] = static_cast<uint8_t>(row.b >> (8 * i));
  }
  SHA256(message.data(), message.size(), state_.data());
}

std::string LogitsHash::Hex() const {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(state_.data()), state_.size()));
}

}  // namespace verbatim::engine

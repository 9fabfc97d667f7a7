// SHA-256 chain over salt and token ids, by OpenSSL.
#include "scheduler/page_digest.h"

#include <openssl/sha.h>

#include <cstring>
#include <vector>

namespace verbatim::scheduler {
namespace {

Digest Sha256(const uint8_t* data, size_t size_bytes) {
  Digest digest;
  SHA256(data, size_bytes, digest.data());
  return digest;
}

}  // namespace

Digest SaltDigest(const std::string& cache_salt) {
  const std::string message = "verbatim prefix cache salt:" + cache_salt;
  return Sha256(reinterpret_cast<const uint8_t*>(message.data()), message.size());
}

Digest PageDigest(const Digest& parent, absl::Span<const int32_t> tokens) {
  std::vector<uint8_t> message(parent.size() + 4 * tokens.size());
  std::memcpy(message.data(), parent.data(), parent.size());
  uint8_t* out = message.data() + parent.size();
  for (const int32_t token : tokens) {
    const uint32_t bits = static_cast<uint32_t>(token);
    for (int shift = 0; shift < 32; shift += 8) *out++ = static_cast<uint8_t>(bits >> shift);
  }
  return Sha256(message.data(), message.size());
}

}  // namespace verbatim::scheduler

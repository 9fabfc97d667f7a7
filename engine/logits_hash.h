// The logit hash of an answer: SHA-256 chained over the fingerprints of its raw logit rows.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "kernels/numerics/row_fingerprint.h"

namespace verbatim::engine {

// h0 = SHA-256("verbatim logits v1"); h(i+1) = SHA-256(h(i) ‖ a ‖ b), a and b as little-endian
// 64-bit integers.
class LogitsHash {
 public:
  LogitsHash();
  void Add(const numerics::RowFingerprint& row);
  std::string Hex() const;

 private:
  std::array<uint8_t, 32> state_;
};

}  // namespace verbatim::engine

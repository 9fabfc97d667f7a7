// The canonical JSON form of a receipt: one receipt, one sequence of bytes.
//
// An object with sorted keys and no white space; UTF-8 as it is, with only ", \ and control
// characters escaped (\b \f \n \r \t, else \u00xx in lower case). Integers are JSON integers of at
// most 2^53, a seed is a decimal string, a float the eight hex digits of its bits, a row
// fingerprint the sixteen hex digits of its sum a and those of b. The member "checksums" holds, for
// every field, the first eight bytes of SHA-256("verbatim receipt field v1\n" + name + "\n" +
// canonical JSON of its value): they guard against accident and name the field that was changed;
// against a forger only the signature helps. docs/receipts.md describes every field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "receipt/receipt.h"

namespace verbatim::receipt {

inline constexpr int64_t kMaxReceiptBytes = 16 << 20;
inline constexpr int64_t kMaxTokens = 1 << 20;  // of a prompt, and of an output
inline constexpr int64_t kMaxNameBytes = 1024;  // of model, numerics id and versions
inline constexpr int64_t kMaxStops = 64;        // strings, and ids
inline constexpr int64_t kMaxStopBytes = 1024;  // of one stop string
inline constexpr int64_t kMaxLogitBiases = 1024;

// What a text says, and whether its own checksums agree with it.
struct Parsed {
  Receipt receipt;
  // The first field, by name, that its checksum contradicts.
  std::optional<std::string> altered_field;
};

// Floats must be finite, strings valid UTF-8, hexadecimal fields in lower case.
std::string ToCanonicalJson(const Receipt& receipt);

// Accepts any white space and order of keys. INVALID_ARGUMENT naming the byte offset (malformed
// JSON, a key twice) or the field: unknown, missing, of the wrong type or form, out of range, too
// large; FAILED_PRECONDITION for a receipt of another version. `name` begins the messages.
absl::StatusOr<Parsed> ParseReceipt(std::string_view text, const std::string& name = "receipt");

// What the signature signs: "verbatim receipt signature v1\n", then the canonical form with the
// signature's value left out (its key id is signed).
std::string SignedBytes(const Receipt& receipt);

// The receipts of a file: one JSON document, or one on each line (the samples of one request).
std::vector<std::string> SplitReceipts(std::string_view file);

}  // namespace verbatim::receipt

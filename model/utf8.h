// UTF-8 as a byte format: validation, decoding, and replacement of malformed bytes by U+FFFD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace verbatim::model {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Unit {
  enum class Kind {
    kValid,       // a whole character of `length` bytes
    kInvalid,     // `length` bytes that one U+FFFD replaces (the maximal subpart of Unicode 3.9)
    kIncomplete,  // all of the rest, `length` bytes, could still begin a character
  };
  Kind kind;
  size_t length;
  char32_t code_point;  // only for kValid
};

// Looks at the first unit of a text that is not empty.
Utf8Unit NextUtf8Unit(std::string_view text);

bool IsValidUtf8(std::string_view text);

// Appends `bytes` to `out` with every malformed part replaced, as bytes.decode('utf-8',
// errors='replace') does in Python. Returns how many bytes were consumed: all of them if `final`;
// otherwise an incomplete character at the end, at most three bytes, is left for the next call.
size_t AppendUtf8(std::string_view bytes, bool final, std::string* out);

// The UTF-8 form of a code point (not a surrogate, at most 0x10FFFF).
std::string EncodeUtf8(char32_t code_point);

}  // namespace verbatim::model

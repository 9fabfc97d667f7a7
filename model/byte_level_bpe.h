// GPT-2's printable alphabet for bytes, in which byte-level vocabularies are written.
// Source: the printable bytes of Latin-1 stand for themselves, the others for U+0100 onwards in
// ascending order (openai/gpt-2, encoder.py, bytes_to_unicode).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace verbatim::model {

// The character, in UTF-8, that stands for a byte.
const std::string& ByteLevelSymbol(uint8_t byte);

// The bytes that a token's text stands for; nullopt if a character is outside the alphabet.
std::optional<std::string> ByteLevelDecode(std::string_view token_text);

}  // namespace verbatim::model

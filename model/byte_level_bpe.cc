// The two directions of GPT-2's byte alphabet.
#include "model/byte_level_bpe.h"

#include <array>

#include "model/utf8.h"

namespace verbatim::model {
namespace {

struct Alphabet {
  std::array<std::string, 256> symbol;
  std::array<int16_t, 512> byte;  // by code point; -1 outside the alphabet
};

const Alphabet& ByteAlphabet() {
  static const Alphabet* const alphabet = [] {
    auto* a = new Alphabet;
    a->byte.fill(-1);
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const char32_t code_point = printable ? static_cast<char32_t>(b) : next++;
      a->symbol[b] = EncodeUtf8(code_point);
      a->byte[code_point] = static_cast<int16_t>(b);
    }
    return a;
  }();
  return *alphabet;
}

}  // namespace

const std::string& ByteLevelSymbol(uint8_t byte) { return ByteAlphabet().symbol[byte]; }

std::optional<std::string> ByteLevelDecode(std::string_view token_text) {
  const Alphabet& alphabet = ByteAlphabet();
  std::string bytes;
  while (!token_text.empty()) {
    const Utf8Unit unit = NextUtf8Unit(token_text);
    if (unit.kind != Utf8Unit::Kind::kValid || unit.code_point >= alphabet.byte.size() ||
        alphabet.byte[unit.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(alphabet.byte[unit.code_point]));
    token_text.remove_prefix(unit.length);
  }
  return bytes;
}

}  // namespace verbatim::model

// UTF-8 decoding after table 3-7 of the Unicode standard.
#include "model/utf8.h"

#include <cstring>

namespace verbatim::model {
namespace {

// Bytes at the start of `text` that are ASCII.
size_t AsciiPrefix(std::string_view text) {
  size_t n = 0;
  while (n + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + n, 8);
    if (word & 0x8080808080808080u) break;
    n += 8;
  }
  while (n < text.size() && static_cast<uint8_t>(text[n]) < 0x80) ++n;
  return n;
}

}  // namespace

Utf8Unit NextUtf8Unit(std::string_view text) {
  using Kind = Utf8Unit::Kind;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Kind::kValid, 1, lead};
  size_t need;
  // The second byte's range depends on the lead byte: it excludes overlong forms, surrogates and
  // what lies above U+10FFFF.
  uint8_t low = 0x80, high = 0xBF;
  char32_t code_point;
  if (lead >= 0xC2 && lead <= 0xDF) {
    need = 2;
    code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    need = 3;
    code_point = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    need = 4;
    code_point = lead & 0x07;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Kind::kInvalid, 1, 0};
  }
  for (size_t i = 1; i < need; ++i) {
    if (i == text.size()) return {Kind::kIncomplete, i, 0};
    const uint8_t b = byte(i);
    if (b < low || b > high) return {Kind::kInvalid, i, 0};
    code_point = (code_point << 6) | (b & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Kind::kValid, need, code_point};
}

bool IsValidUtf8(std::string_view text) {
  while (true) {
    text.remove_prefix(AsciiPrefix(text));
    if (text.empty()) return true;
    const Utf8Unit unit = NextUtf8Unit(text);
    if (unit.kind != Utf8Unit::Kind::kValid) return false;
    text.remove_prefix(unit.length);
  }
}

size_t AppendUtf8(std::string_view bytes, bool final, std::string* out) {
  size_t pos = 0;
  while (pos < bytes.size()) {
    const size_t ascii = AsciiPrefix(bytes.substr(pos));
    out->append(bytes.substr(pos, ascii));
    pos += ascii;
    if (pos == bytes.size()) break;
    const Utf8Unit unit = NextUtf8Unit(bytes.substr(pos));
    if (unit.kind == Utf8Unit::Kind::kIncomplete && !final) return pos;
    if (unit.kind == Utf8Unit::Kind::kValid) {
      out->append(bytes.substr(pos, unit.length));
    } else {
      out->append(kReplacementCharacter);
    }
    pos += unit.length;
  }
  return pos;
}

std::string EncodeUtf8(char32_t c) {
  std::string out;
  const auto put = [&](uint32_t b) { out.push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  }
  return out;
}

}  // namespace verbatim::model

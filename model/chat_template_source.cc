// A scanner for the part of Jinja's syntax that chat templates are written in.
#include "model/chat_template_source.h"

#include <cctype>
#include <cstdint>

#include "model/utf8.h"

namespace verbatim::model {
namespace {

bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

void StripRight(std::string* text) {
  while (!text->empty() && IsSpace(text->back())) text->pop_back();
}

// Drops blanks after the last line break, or all of a text that is nothing but blanks and begins a
// line.
void StripLine(bool text_begins_line, std::string* text) {
  const size_t last = text->find_last_not_of(" \t");
  if (last == std::string::npos ? text_begins_line : (*text)[last] == '\n') {
    text->resize(last == std::string::npos ? 0 : last + 1);
  }
}

int HexValue(std::string_view digits) {
  int value = 0;
  for (char c : digits) {
    if (!std::isxdigit(static_cast<unsigned char>(c))) return -1;
    value = value * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return value;
}

// Reads the literal that begins at source[*pos] with its quote; leaves *pos after it. False if it
// does not end.
bool ReadLiteral(std::string_view source, size_t* pos, std::string* out) {
  const char quote = source[(*pos)++];
  for (; *pos < source.size(); ++*pos) {
    char c = source[*pos];
    if (c == quote) {
      ++*pos;
      return true;
    }
    if (c != '\\' || *pos + 1 == source.size()) {
      out->push_back(c);
      continue;
    }
    c = source[++*pos];
    const int digits = c == 'x' ? 2 : c == 'u' ? 4 : 0;
    const int value = digits > 0 && *pos + digits < source.size()
                          ? HexValue(source.substr(*pos + 1, digits))
                          : -1;
    if (value >= 0) {
      out->append(EncodeUtf8(static_cast<char32_t>(value)));
      *pos += digits;
    } else if (c == 'n') {
      out->push_back('\n');
    } else if (c == 't') {
      out->push_back('\t');
    } else if (c == 'r') {
      out->push_back('\r');
    } else if (c == '\\' || c == '\'' || c == '"') {
      out->push_back(c);
    } else {
      out->push_back('\\');
      out->push_back(c);
    }
  }
  return false;
}

void ReplaceAll(std::string* text, std::string_view from, std::string_view to) {
  for (size_t pos = 0; (pos = text->find(from, pos)) != std::string::npos; pos += to.size()) {
    text->replace(pos, from.size(), to);
  }
}

}  // namespace

std::string CompactTemplate(std::string_view source) {
  std::string out, text;  // `text` waits: what follows may strip its end
  bool begins_line = true;
  for (size_t pos = 0; pos < source.size();) {
    const std::string_view open = source.substr(pos, 2);
    if (open != "{{" && open != "{%" && open != "{#") {
      text.push_back(source[pos++]);
      continue;
    }
    pos += 2;
    const bool is_output = open == "{{";
    const std::string close = is_output ? "}}" : open == "{%" ? "%}" : "#}";
    if (source.substr(pos, 1) == "-") {
      StripRight(&text);
      ++pos;
    } else if (source.substr(pos, 1) == "+") {
      ++pos;
    } else if (!is_output) {
      StripLine(begins_line, &text);
    }
    out += text;
    text.clear();
    std::string tag;
    bool closed = false, strip = false;
    while (pos < source.size() && !closed) {
      const char c = source[pos];
      strip = c == '-' && source.substr(pos + 1, 2) == close;
      if (strip || source.substr(pos, 2) == close) {
        pos += strip ? 3 : 2;
        closed = true;
      } else if (open != "{#" && (c == '\'' || c == '"')) {
        std::string literal;
        if (!ReadLiteral(source, &pos, &literal)) return {};
        if (tag.size() >= 2 && tag.substr(tag.size() - 2) == "'+") {
          tag.resize(tag.size() - 2);
          tag += literal + "'";
        } else {
          tag += "'" + literal + "'";
        }
      } else {
        if (!IsSpace(c)) tag.push_back(c);
        ++pos;
      }
    }
    if (!closed) return {};
    if (open != "{#") out += std::string(open) + tag + close;
    if (strip) {
      while (pos < source.size() && IsSpace(source[pos])) ++pos;
    } else if (!is_output && source.substr(pos, 1) == "\n") {
      ++pos;  // trim_blocks
    }
    begins_line = pos > 0 && source[pos - 1] == '\n';
  }
  // A single line break at the very end is dropped by Jinja.
  if (!text.empty() && text.back() == '\n') text.pop_back();
  out += text;
  for (std::string_view name : {"role", "content"}) {
    for (std::string_view owner : {"message", "messages[0]"}) {
      const std::string prefix(owner), member(name);
      ReplaceAll(&out, prefix + "." + member, prefix + "['" + member + "']");
    }
  }
  return out;
}

}  // namespace verbatim::model

// Translation of Oniguruma's regular expressions, as tokenizer.json holds them, to PCRE2's syntax.
#include <cctype>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "model/pre_tokenizer.h"

namespace verbatim::model {
namespace {

// Oniguruma: \s is White_Space (PCRE2 adds U+180E), \w is letter, mark, decimal digit and connector
// punctuation.
constexpr char kWordMembers[] = R"(\p{L}\p{M}\p{Nd}\p{Pc})";

absl::Status Refuse(std::string_view construct, size_t position) {
  return absl::InvalidArgumentError(absl::StrCat("construct ", std::string(construct), " at byte ",
                                                 position, " is not supported"));
}

// The group openings that mean the same to both engines.
bool IsKnownGroup(std::string_view rest) {
  for (std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)"}) {
    if (rest.substr(0, known.size()) == known) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::string> TranslatePattern(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (i + 1 == pattern.size()) return Refuse("trailing backslash", i);
      const char e = pattern[++i];
      switch (e) {
        case 's':
          out += R"(\p{White_Space})";
          continue;
        case 'S':
          out += R"(\P{White_Space})";
          continue;
        case 'w':
          absl::StrAppend(&out, in_class ? "" : "[", kWordMembers, in_class ? "" : "]");
          continue;
        case 'W':
          if (in_class) return Refuse("\\W inside a class", i - 1);
          absl::StrAppend(&out, "[^", kWordMembers, "]");
          continue;
        case 'v':
          out += R"(\x0b)";
          continue;
        case 'u': {  // \uHHHH
          const std::string_view hex = pattern.substr(i + 1, 4);
          for (char h : hex) {
            if (!std::isxdigit(static_cast<unsigned char>(h))) return Refuse("\\u", i - 1);
          }
          if (hex.size() != 4) return Refuse("\\u", i - 1);
          absl::StrAppend(&out, "\\x{", std::string(hex), "}");
          i += 4;
          continue;
        }
        case 'd':
        case 'D':
        case 'n':
        case 'r':
        case 't':
        case 'f':
        case 'x':
        case 'p':
        case 'P':
          out += {'\\', e};
          if (pattern.substr(i + 1, 1) == "{") {  // a property's name or a number, not a repetition
            const size_t close = pattern.find('}', i);
            if (close == std::string_view::npos) return Refuse("an unclosed {", i + 1);
            out.append(pattern.substr(i + 1, close - i));
            i = close;
          }
          continue;
        case 'b':
        case 'B':
          return Refuse("\\b", i - 1);
        default:
          if (std::isalnum(static_cast<unsigned char>(e)))
            return Refuse({&pattern[i - 1], 2}, i - 1);
          out += {'\\', e};
          continue;
      }
    }
    if (in_class) {
      if (c == ']') in_class = false;
      if (c == '[') return Refuse("a class inside a class", i);
      if (pattern.substr(i, 2) == "&&") return Refuse("&& inside a class", i);
      out += c;
      continue;
    }
    if (c == '[') {
      in_class = true;
      out += c;
      if (pattern.substr(i + 1, 1) == "^") out += pattern[++i];
      if (pattern.substr(i + 1, 1) == "]") return Refuse("an empty class", i);
      continue;
    }
    if (c == '(' && pattern.substr(i + 1, 1) == "*") return Refuse("(*", i);
    if (c == '(' && pattern.substr(i + 1, 1) == "?" && !IsKnownGroup(pattern.substr(i))) {
      return Refuse(pattern.substr(i, 3), i);
    }
    // {n,m}+ repeats the repetition in Oniguruma and is possessive in PCRE2.
    if (c == '}' && pattern.substr(i + 1, 1) == "+") return Refuse("}+", i);
    out += c;
  }
  if (in_class) return Refuse("an unclosed class", pattern.size());
  return out;
}

}  // namespace verbatim::model

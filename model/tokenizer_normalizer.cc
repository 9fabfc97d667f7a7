// Unicode normalization by utf8proc, and replacement of literals.
#include "model/tokenizer_normalizer.h"

#include <algorithm>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/utf8.h"
#include "utf8proc.h"

namespace verbatim::model {
namespace {

// A normalization form in three steps of utf8proc's, but with a sort of our own in the middle:
// utf8proc_map() orders a run of n combining marks in O(n^2), which a request must not be able to
// ask for.
absl::StatusOr<std::string> UnicodeForm(std::string_view text, int form) {
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | form);
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = NextUtf8Unit(text.substr(pos));
    pos += unit.length;
    utf8proc_int32_t parts[32];  // the longest decomposition has 18 characters
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(unit.code_point), parts, std::size(parts), options, nullptr);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(std::size(parts))) {
      return absl::InternalError(absl::StrCat("Unicode normalization of U+",
                                              absl::Hex(static_cast<uint32_t>(unit.code_point))));
    }
    points.insert(points.end(), parts, parts + count);
  }
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (auto begin = points.begin(); begin != points.end();) {
    if (combining_class(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end =
        std::find_if(begin, points.end(), [&](auto c) { return combining_class(c) == 0; });
    std::stable_sort(begin, end,
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
  utf8proc_ssize_t count = static_cast<utf8proc_ssize_t>(points.size());
  if ((form & UTF8PROC_COMPOSE) != 0) {
    count = utf8proc_normalize_utf32(points.data(), count, options);
    if (count < 0)
      return absl::InternalError(absl::StrCat("Unicode normalization: ", utf8proc_errmsg(count)));
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) out += EncodeUtf8(static_cast<char32_t>(points[i]));
  return out;
}

// Characters below U+0300 in their composed form are the same in NFC.
bool IsPlainForNfc(std::string_view text) {
  for (char c : text) {
    if (static_cast<uint8_t>(c) >= 0xCC) return false;
  }
  return true;
}

}  // namespace

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t pos = 0;
  for (size_t hit; (hit = text.find(from, pos)) != std::string_view::npos;
       pos = hit + from.size()) {
    out.append(text.substr(pos, hit - pos)).append(to);
  }
  out.append(text.substr(pos));
  return out;
}

absl::StatusOr<std::string> Normalize(const std::vector<NormalizerStep>& steps,
                                      std::string_view text) {
  using Kind = NormalizerStep::Kind;
  std::string current(text);
  for (const NormalizerStep& step : steps) {
    int form = 0;
    switch (step.kind) {
      case Kind::kReplace:
        current = ReplaceAll(current, step.pattern, step.content);
        continue;
      case Kind::kPrepend:
        if (!current.empty()) current.insert(0, step.content);
        continue;
      case Kind::kNfc:
        if (IsPlainForNfc(current)) continue;
        form = UTF8PROC_COMPOSE;
        break;
      case Kind::kNfd:
        form = UTF8PROC_DECOMPOSE;
        break;
      case Kind::kNfkc:
        form = UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
        break;
      case Kind::kNfkd:
        form = UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
        break;
    }
    absl::StatusOr<std::string> composed = UnicodeForm(current, form);
    if (!composed.ok()) return composed.status();
    current = *std::move(composed);
  }
  return current;
}

}  // namespace verbatim::model

// Unicode normalization by utf8proc, and replacement of literals.
#include "model/tokenizer_normalizer.h"

#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "utf8proc.h"

namespace verbatim::model {
namespace {

absl::StatusOr<std::string> ComposeForm(std::string_view text, int form) {
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | form));
  if (size < 0) {
    return absl::InternalError(absl::StrCat("Unicode normalization: ", utf8proc_errmsg(size)));
  }
  std::string out(reinterpret_cast<const char*>(result), static_cast<size_t>(size));
  std::free(result);
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
    absl::StatusOr<std::string> composed = ComposeForm(current, form);
    if (!composed.ok()) return composed.status();
    current = *std::move(composed);
  }
  return current;
}

}  // namespace verbatim::model

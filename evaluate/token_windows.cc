// Reading of texts and cutting of their ids.
#include "evaluate/token_windows.h"

#include <openssl/evp.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace verbatim::evaluate {

absl::StatusOr<std::string> ReadText(const std::string& path) {
  const auto close = [](std::FILE* file) {
    if (file != stdin) std::fclose(file);
  };
  const std::unique_ptr<std::FILE, decltype(close)> file(
      path == "-" ? stdin : std::fopen(path.c_str(), "rbe"), close);
  if (file == nullptr) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
  }
  std::string text;
  char buffer[1 << 16];
  for (size_t got; (got = std::fread(buffer, 1, sizeof(buffer), file.get())) > 0;) {
    text.append(buffer, got);
  }
  if (std::ferror(file.get()) != 0) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": is empty"));
  return text;
}

std::string Sha256(std::string_view text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

absl::StatusOr<std::vector<std::vector<int32_t>>> CutWindows(const model::Tokenizer& tokenizer,
                                                             std::string_view text,
                                                             const std::string& source,
                                                             int64_t window_tokens,
                                                             int64_t max_windows) {
  if (window_tokens < 1 || max_windows < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "windows of ", window_tokens, " tokens, at most ", max_windows, ": both must be positive"));
  }
  absl::StatusOr<std::vector<int32_t>> ids =
      tokenizer.Encode(text, {.add_special_tokens = false, .parse_special = false});
  if (!ids.ok()) return ids.status();
  const int64_t available = static_cast<int64_t>(ids->size()) / window_tokens;
  if (available == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        source, ": ", ids->size(), " tokens, fewer than one window of ", window_tokens));
  }
  const int64_t count = max_windows == 0 || max_windows > available ? available : max_windows;
  std::vector<std::vector<int32_t>> windows;
  windows.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = ids->begin() + i * available / count * window_tokens;
    windows.emplace_back(begin, begin + window_tokens);
  }
  return windows;
}

}  // namespace verbatim::evaluate

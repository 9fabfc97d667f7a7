// Texts as windows of token ids, all of one length.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace verbatim::evaluate {

// The whole of a file, "-" being the standard input. Invalid UTF-8 stays as it is: the tokenizer
// replaces it. NOT_FOUND or UNAVAILABLE naming the file, INVALID_ARGUMENT for an empty one.
absl::StatusOr<std::string> ReadText(const std::string& path);

// SHA-256 in hex, by which results name the text that they are about.
std::string Sha256(std::string_view text);

// The text's ids, without the tokens that a tokenizer adds and with the text of special tokens
// taken literally, cut into windows of `window_tokens`; the rest is dropped. At most `max_windows`
// (0: all), spread evenly over the text where there are more. INVALID_ARGUMENT, naming `source`,
// when the text is shorter than one window.
absl::StatusOr<std::vector<std::vector<int32_t>>> CutWindows(const model::Tokenizer& tokenizer,
                                                             std::string_view text,
                                                             const std::string& source,
                                                             int64_t window_tokens,
                                                             int64_t max_windows);

}  // namespace verbatim::evaluate

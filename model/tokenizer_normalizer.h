// What a tokenizer does to a text before it is cut in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer_spec.h"

namespace verbatim::model {

// `from` must not be empty.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

// Applies the steps in order to valid UTF-8.
absl::StatusOr<std::string> Normalize(const std::vector<NormalizerStep>& steps,
                                      std::string_view text);

}  // namespace verbatim::model

// Finds stop strings in text that arrives in pieces, holding back what may be the beginning of one.
#include "engine/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace verbatim::engine {
namespace {

// Length of the longest proper prefix of `stop` that `text` ends with.
size_t PartialMatch(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stop_strings)
    : stop_strings_(std::move(stop_strings)) {}

StopMatcher::Result StopMatcher::Push(std::string_view piece, bool include_stop) {
  Result result;
  if (stop_strings_.empty()) {
    result.text = std::string(piece);
    return result;
  }
  held_.append(piece);
  size_t first = std::string::npos;
  const std::string* match = nullptr;
  for (const std::string& stop : stop_strings_) {
    const size_t at = held_.find(stop);
    if (at < first) {
      first = at;
      match = &stop;
    }
  }
  if (match != nullptr) {
    result.text = held_.substr(0, include_stop ? first + match->size() : first);
    result.matched = *match;
    held_.clear();
    return result;
  }
  size_t hold = 0;
  for (const std::string& stop : stop_strings_) hold = std::max(hold, PartialMatch(held_, stop));
  result.text = held_.substr(0, held_.size() - hold);
  held_.erase(0, held_.size() - hold);
  return result;
}

std::string StopMatcher::Flush() { return std::exchange(held_, {}); }

}  // namespace verbatim::engine

// Finds stop strings in text that arrives in pieces, holding back what may be the beginning of one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace verbatim::engine {

class StopMatcher {
 public:
  // Strings are not empty.
  explicit StopMatcher(std::vector<std::string> stop_strings);

  struct Result {
    std::string text;                    // may be emitted now
    std::optional<std::string> matched;  // the stop string that ended the text
  };
  // Takes the next piece. With a match the text ends before the stop string (after it when
  // `include_stop`), and what follows is dropped. The earliest match wins; of several at one place,
  // the one listed first.
  Result Push(std::string_view piece, bool include_stop);

  // The text held back, at the end of the stream.
  std::string Flush();

 private:
  const std::vector<std::string> stop_strings_;
  std::string held_;
};

}  // namespace verbatim::engine

// Progress of a load on standard error.
#pragma once

#include <functional>
#include <string>

#include "client/load_generator.h"

namespace verbatim::client {

// "[#####.....] 45/90 requests, 12.3 s, 3.7 requests/s, 410 tokens/s, 12 s left, 1 failed"; the bar
// has `width` cells and is absent when width is 0.
std::string ProgressLine(const LoadProgress& progress, double seconds, int width);

// On a terminal one line that is drawn again and again; elsewhere a new line every ten seconds.
class ProgressBar {
 public:
  using Write = std::function<void(const std::string&)>;

  // Standard error, whatever it is.
  ProgressBar();
  ProgressBar(bool terminal, Write write) : terminal_(terminal), write_(std::move(write)) {}

  // `seconds` since the start of the load, ascending.
  void Show(const LoadProgress& progress, double seconds);
  // The last state; ends the line.
  void Finish(const LoadProgress& progress, double seconds);

 private:
  bool terminal_;
  Write write_;
  double next_line_ = 10;
};

}  // namespace verbatim::client

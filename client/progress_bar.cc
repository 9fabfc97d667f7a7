// Drawing progress.
#include "client/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace verbatim::client {
namespace {

constexpr int kWidth = 24;
constexpr double kSecondsPerLine = 10;
constexpr char kClearToEnd[] = "\x1b[K";

}  // namespace

std::string ProgressLine(const LoadProgress& progress, double seconds, int width) {
  std::string out;
  if (width > 0) {
    const int64_t filled =
        progress.total > 0
            ? std::clamp<int64_t>(width * progress.finished / progress.total, 0, width)
            : 0;
    out = absl::StrCat("[", std::string(static_cast<size_t>(filled), '#'),
                       std::string(static_cast<size_t>(width - filled), '.'), "] ");
  }
  absl::StrAppendFormat(&out, "%d/%d requests, %.1f s", progress.finished, progress.total, seconds);
  if (seconds > 0 && progress.finished > 0) {
    const double rate = static_cast<double>(progress.finished) / seconds;
    absl::StrAppendFormat(&out, ", %.1f requests/s, %.0f tokens/s", rate,
                          static_cast<double>(progress.output_tokens) / seconds);
    if (progress.finished < progress.total) {
      absl::StrAppendFormat(&out, ", %.0f s left",
                            static_cast<double>(progress.total - progress.finished) / rate);
    }
  }
  if (progress.failed > 0) absl::StrAppendFormat(&out, ", %d failed", progress.failed);
  return out;
}

ProgressBar::ProgressBar()
    : ProgressBar(isatty(STDERR_FILENO) == 1, [](const std::string& text) {
        std::fwrite(text.data(), 1, text.size(), stderr);
        std::fflush(stderr);
      }) {}

void ProgressBar::Show(const LoadProgress& progress, double seconds) {
  if (terminal_) {
    write_(absl::StrCat("\r", ProgressLine(progress, seconds, kWidth), kClearToEnd));
    return;
  }
  if (seconds < next_line_) return;
  while (next_line_ <= seconds) next_line_ += kSecondsPerLine;
  write_(ProgressLine(progress, seconds, 0) + "\n");
}

void ProgressBar::Finish(const LoadProgress& progress, double seconds) {
  const std::string line = ProgressLine(progress, seconds, terminal_ ? kWidth : 0);
  write_(terminal_ ? absl::StrCat("\r", line, kClearToEnd, "\n") : line + "\n");
}

}  // namespace verbatim::client

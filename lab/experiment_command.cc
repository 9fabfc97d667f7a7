// The frame of a lab command.
#include "lab/experiment_command.h"

#include <cstdio>

#include "client/files.h"
#include "client/report_json.h"

namespace verbatim::lab {

void Say(const std::string& line) {
  std::fprintf(stderr, "  %s\n", line.c_str());
  std::fflush(stderr);
}

absl::Status WriteResults(const nlohmann::json& data, const std::string& output,
                          const std::string& page, const std::string& page_path) {
  if (!output.empty()) {
    absl::Status status = client::WriteFile(output, client::Dump(data, 1) + "\n");
    if (!status.ok()) return status;
    std::printf("\nwrote %s\n", output.c_str());
  }
  if (!page_path.empty()) {
    absl::Status status = client::WriteFile(page_path, page);
    if (!status.ok()) return status;
    std::printf("wrote %s\n", page_path.c_str());
  }
  return absl::OkStatus();
}

}  // namespace verbatim::lab

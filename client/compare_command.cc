// Connection, output and exit status of `verbatim compare`.
#include "client/compare_command.h"

#include <cstdio>
#include <string>

#include "client/compare_options.h"
#include "client/compare_report.h"
#include "client/files.h"
#include "client/report_json.h"

namespace verbatim::client {
namespace {

absl::StatusOr<int> Run(CompareFlags* flags) {
  auto client = flags->connection.Connect();
  if (!client.ok()) return client.status();
  if (absl::Status status = flags->prompt.Fill(client->get(), &flags->options.request);
      !status.ok()) {
    return status;
  }
  const auto result = RunCompareExperiment(
      client->get(), flags->options,
      [](const std::string& line) { std::fprintf(stderr, "  %s\n", line.c_str()); });
  if (!result.ok()) return result.status();
  std::fputs(CompareTable(flags->options, *result).c_str(), stdout);
  std::fflush(stdout);
  if (!flags->json_file.empty()) {
    const std::string text = Dump(CompareJson(flags->options, *result), 1);
    if (absl::Status status = WriteFile(flags->json_file, text + "\n"); !status.ok()) {
      return status;
    }
  }
  return result->deterministic.same_every_time() ? 0 : 1;
}

}  // namespace

int RunCompare(int argc, char** argv) {
  CompareFlags flags;
  flags::FlagSet set = flags.Flags();
  return RunCommand({.name = "compare",
                     .flags = &set,
                     .check = [&](const auto& positional) { return flags.Check(positional); },
                     .run = [&] { return Run(&flags); }},
                    argc, argv);
}

}  // namespace verbatim::client

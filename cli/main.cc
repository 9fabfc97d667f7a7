// The command `verbatim`: dispatches to its subcommands.
#include <cstdio>
#include <string>

#include "client/bench_command.h"
#include "client/compare_command.h"
#include "client/generate_command.h"
#include "client/health_command.h"
#include "conformance/conformance_command.h"
#include "evaluate/perplexity_command.h"
#include "lab/lab_command.h"
#include "replay/explain_command.h"
#include "replay/replay_command.h"
#include "server/serve_command.h"
#include "upcycle/upcycle_command.h"
#include "verify/verify_command.h"

namespace {

struct Subcommand {
  const char* name;
  const char* summary;
  int (*run)(int argc, char** argv);  // argv[0] is the subcommand's name
};

constexpr Subcommand kSubcommands[] = {
    {"serve", "serve a model over gRPC", verbatim::server::RunServe},
    {"generate", "stream one prompt's answer to the terminal", verbatim::client::RunGenerate},
    {"health", "ask a server whether it takes requests", verbatim::client::RunHealth},
    {"verify", "check the receipt of an answer", verbatim::verify::RunVerify},
    {"compare", "send one prompt many times in both modes and compare the answers",
     verbatim::client::RunCompare},
    {"bench", "measure a running server under load", verbatim::client::RunBench},
    {"replay", "repeat a recorded answer bit by bit", verbatim::replay::RunReplay},
    {"explain", "say why two runs of a prompt differ", verbatim::replay::RunExplain},
    {"conformance", "check that deterministic answers keep every bit",
     verbatim::conformance::RunConformance},
    {"upcycle", "make a mixture of experts from a dense model", verbatim::upcycle::RunUpcycle},
    {"perplexity", "measure how well a model predicts a text", verbatim::evaluate::RunPerplexity},
    {"lab", "run an experiment, such as the demonstration", verbatim::lab::RunLab},
};

void PrintUsage(std::FILE* out) {
  std::fputs("usage: verbatim COMMAND [flags]\n\n", out);
  for (const Subcommand& command : kSubcommands) {
    std::fprintf(out, "  %-12s %s\n", command.name, command.summary);
  }
  std::fputs("\n`verbatim COMMAND --help` lists the flags of a command.\n", out);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  for (const Subcommand& command : kSubcommands) {
    if (name == command.name) return command.run(argc - 1, argv + 1);
  }
  if (name == "--help" || name == "-h" || name == "help") {
    PrintUsage(stdout);
    return 0;
  }
  if (!name.empty()) std::fprintf(stderr, "verbatim: '%s' is not a command\n", name.c_str());
  PrintUsage(stderr);
  return 2;
}

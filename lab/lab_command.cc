// The table of experiments.
#include "lab/lab_command.h"

#include <cstdio>
#include <string>

#include "lab/demo_command.h"
#include "lab/fragility_command.h"
#include "lab/moe_command.h"
#include "lab/moe_quality.h"
#include "lab/replay_study.h"
#include "lab/serving_bench.h"

namespace verbatim::lab {
namespace {

struct Experiment {
  const char* name;
  const char* summary;
  int (*run)(int argc, char** argv);
};

constexpr Experiment kExperiments[] = {
    {"demo", "the same prompts in every mode: texts, logit bits and speed", RunDemo},
    {"fragility", "how probable a rerun under load is to differ, and how well that is known",
     RunFragility},
    {"moe-attack", "a stranger's answer, changed by filling its experts", RunMoeAttack},
    {"moe-demo", "a mixture of experts: neighbours and attackers, with and without capacity limits",
     RunMoeDemo},
    {"moe-quality", "what capacity limits cost in perplexity", RunMoeQuality},
    {"moe-study", "answers of a mixture of experts among neighbours, under several limits",
     RunMoeStudy},
    {"replay-study", "recorded answers of throughput mode, repeated bit by bit", RunReplayStudy},
    {"serving-bench", "tokens per second of every mode, end to end", RunServingBench},
};

void PrintUsage(std::FILE* out) {
  std::fputs("usage: verbatim lab EXPERIMENT [flags]\n\n", out);
  for (const Experiment& experiment : kExperiments) {
    std::fprintf(out, "  %-14s %s\n", experiment.name, experiment.summary);
  }
  std::fputs("\n`verbatim lab EXPERIMENT --help` lists the flags of an experiment.\n", out);
}

}  // namespace

int RunLab(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  for (const Experiment& experiment : kExperiments) {
    if (name == experiment.name) return experiment.run(argc - 1, argv + 1);
  }
  if (name == "--help" || name == "-h") {
    PrintUsage(stdout);
    return 0;
  }
  if (!name.empty()) {
    std::fprintf(stderr, "verbatim lab: '%s' is not an experiment\n", name.c_str());
  }
  PrintUsage(stderr);
  return 2;
}

}  // namespace verbatim::lab

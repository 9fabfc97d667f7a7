// `verbatim lab moe-demo`, `moe-study` and `moe-attack`: answers of a mixture of experts among
// neighbours and attackers, with and without capacity limits.
#pragma once

namespace verbatim::lab {

// argv[0] is the subcommand's name. Exit status: 0; 1 when the experiment could not be run, was
// interrupted, or an answer of deterministic mode changed a bit; 2 for bad usage.
int RunMoeDemo(int argc, char** argv);    // one limit: with it, without it, deterministic
int RunMoeStudy(int argc, char** argv);   // several limits, in both modes
int RunMoeAttack(int argc, char** argv);  // the attack alone, under several limits

}  // namespace verbatim::lab

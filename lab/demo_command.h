// `verbatim lab demo`: the difference between the two modes, shown on this machine.
#pragma once

namespace verbatim::lab {

// argv[0] is the subcommand's name. Exit status: 0; 1 when the experiment could not be run, was
// interrupted, or deterministic mode gave more than one logit hash for a prompt; 2 for bad usage.
int RunDemo(int argc, char** argv);

}  // namespace verbatim::lab

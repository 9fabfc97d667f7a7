// `verbatim lab fragility`: measures what load does to a model's answers, and calibrates servers.
#pragma once

namespace verbatim::lab {

// argv[0] is the subcommand's name. Exit status: 0; 1 when the experiment could not be run or was
// interrupted; 2 for bad usage.
int RunFragility(int argc, char** argv);

}  // namespace verbatim::lab

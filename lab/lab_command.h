// `verbatim lab EXPERIMENT`: dispatches to the experiments.
#pragma once

namespace verbatim::lab {

// argv[0] is "lab". Exit status: that of the experiment; 2 for an unknown one.
int RunLab(int argc, char** argv);

}  // namespace verbatim::lab

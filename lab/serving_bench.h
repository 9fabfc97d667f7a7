// `verbatim lab serving-bench`: end-to-end speed of every mode through gRPC, in one run.
#pragma once

namespace verbatim::lab {

// argv[0] is the subcommand's name. Exit status: 0; 1 when it could not be run or was interrupted;
// 2 for bad usage.
int RunServingBench(int argc, char** argv);

}  // namespace verbatim::lab

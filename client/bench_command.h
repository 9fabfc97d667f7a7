// `verbatim bench`: latency and throughput of a running server under a generated load.
#pragma once

namespace verbatim::client {

// argv[0] is the subcommand's name. Exit status: 0; 1 when the server cannot be reached, every
// request failed or the run was interrupted; 2 for bad usage.
int RunBench(int argc, char** argv);

}  // namespace verbatim::client

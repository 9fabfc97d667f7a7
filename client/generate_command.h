// `verbatim generate`: one prompt, its answer streamed to the terminal.
#pragma once

namespace verbatim::client {

// argv[0] is the subcommand's name. Exit status: 0 after a complete answer or --help, 1 when the
// call failed, 2 for bad usage.
int RunGenerate(int argc, char** argv);

}  // namespace verbatim::client

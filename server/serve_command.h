// `verbatim serve`: loads a model, serves it until a signal, drains, exits.
#pragma once

namespace verbatim::server {

// argv[0] is the subcommand's name. Exit status: 0 after a drained shutdown or --help, 2 for bad
// flags, 1 when the model, the machine or the port cannot serve, 128 + signal when a second signal
// cut the draining short.
int RunServe(int argc, char** argv);

}  // namespace verbatim::server

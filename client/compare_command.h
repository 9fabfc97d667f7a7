// `verbatim compare`: is the same prompt answered the same way every time, in each mode?
#pragma once

namespace verbatim::client {

// argv[0] is the subcommand's name. Exit status: 0 when the deterministic mode gave one logit hash
// and one text; 1 when it did not, when requests failed or the server cannot be reached; 2 for bad
// usage.
int RunCompare(int argc, char** argv);

}  // namespace verbatim::client

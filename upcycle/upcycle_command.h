// `verbatim upcycle`: makes a mixture of experts from a dense checkpoint.
#pragma once

namespace verbatim::upcycle {

// argv[0] is the subcommand's name. Exit status: 0, 1 when it failed, 2 for wrong usage.
int RunUpcycle(int argc, char** argv);

}  // namespace verbatim::upcycle

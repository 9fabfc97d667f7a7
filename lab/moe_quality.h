// `verbatim lab moe-quality`: what capacity limits on experts cost in perplexity.
#pragma once

namespace verbatim::lab {

// argv[0] is the subcommand's name. Exit status: 0, 1 when it failed, 2 for wrong usage.
int RunMoeQuality(int argc, char** argv);

}  // namespace verbatim::lab

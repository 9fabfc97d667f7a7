// `verbatim perplexity`: how well a model predicts a text.
#pragma once

namespace verbatim::evaluate {

// argv[0] is the subcommand's name. Exit status: 0, 1 when it failed, 2 for wrong usage.
int RunPerplexity(int argc, char** argv);

}  // namespace verbatim::evaluate

// `verbatim conformance`: runs the suite, prints its tables and writes its results.
#pragma once

namespace verbatim::conformance {

// Exit status 0 when every promise held and every perturbation happened, 1 when not, 2 for wrong
// flags.
int RunConformance(int argc, char** argv);

}  // namespace verbatim::conformance

// `verbatim explain`: why two runs of one prompt differ.
#pragma once

namespace verbatim::replay {

// Exit status 0 when the two runs were compared, whatever came out; 1 on errors, 2 on wrong usage.
int RunExplain(int argc, char** argv);

}  // namespace verbatim::replay

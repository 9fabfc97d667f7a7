// `verbatim lab replay-study`: how many recorded answers come back bit by bit.
#pragma once

namespace verbatim::lab {

// Exit status 1 when fewer than 99 of 100 answers were reproduced.
int RunReplayStudy(int argc, char** argv);

}  // namespace verbatim::lab

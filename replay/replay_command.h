// `verbatim replay`: repeats a recorded answer and compares its logits bit by bit.
#pragma once

namespace verbatim::replay {

// Exit status 0: reproduced; 1: not, or an error; 2: wrong usage.
int RunReplay(int argc, char** argv);

}  // namespace verbatim::replay

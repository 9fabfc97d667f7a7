// Vocabulary passes of sampling in plain C++.
#include "kernels/cpu/sampling.inc"

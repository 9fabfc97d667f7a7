// Vocabulary passes of sampling in AVX2 and FMA.
#include "kernels/cpu/sampling.inc"

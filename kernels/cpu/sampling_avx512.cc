// Vocabulary passes of sampling in AVX-512.
#include "kernels/cpu/sampling.inc"

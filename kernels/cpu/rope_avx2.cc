// Rotary-embedding kernels in AVX2.
#include "kernels/cpu/rope.inc"

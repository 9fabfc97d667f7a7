// Rotary-embedding kernels in AVX-512.
#include "kernels/cpu/rope.inc"

// Rotary-embedding kernels in plain C++.
#include "kernels/cpu/rope.inc"

// Mixture-of-experts kernels in AVX-512.
#include "kernels/cpu/moe.inc"

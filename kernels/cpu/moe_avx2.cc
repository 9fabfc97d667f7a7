// Mixture-of-experts kernels in AVX2.
#include "kernels/cpu/moe.inc"

// Attention kernels in AVX2.
#include "kernels/cpu/attention.inc"

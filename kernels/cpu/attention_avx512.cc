// Attention kernels in AVX-512.
#include "kernels/cpu/attention.inc"

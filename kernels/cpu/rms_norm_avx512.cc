// RMSNorm kernels in AVX-512.
#include "kernels/cpu/rms_norm.inc"

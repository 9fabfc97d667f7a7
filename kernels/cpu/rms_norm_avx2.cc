// RMSNorm kernels in AVX2.
#include "kernels/cpu/rms_norm.inc"

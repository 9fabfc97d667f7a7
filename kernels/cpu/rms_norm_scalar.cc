// RMSNorm kernels in plain C++.
#include "kernels/cpu/rms_norm.inc"

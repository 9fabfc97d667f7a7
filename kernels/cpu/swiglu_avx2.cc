// SwiGLU kernels in AVX2.
#include "kernels/cpu/swiglu.inc"

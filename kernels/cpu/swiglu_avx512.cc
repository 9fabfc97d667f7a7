// SwiGLU kernels in AVX-512.
#include "kernels/cpu/swiglu.inc"

// SwiGLU kernels in plain C++.
#include "kernels/cpu/swiglu.inc"

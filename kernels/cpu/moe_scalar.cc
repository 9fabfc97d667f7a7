// Mixture-of-experts kernels in plain C++.
#include "kernels/cpu/moe.inc"

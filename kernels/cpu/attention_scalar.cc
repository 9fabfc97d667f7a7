// Attention kernels in plain C++.
#include "kernels/cpu/attention.inc"

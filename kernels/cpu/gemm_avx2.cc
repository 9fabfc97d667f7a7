// The matrix products, compiled for the instruction set in this file's name.
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_layout.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops/block_formats.h"

// The following must come in this order.
#include "kernels/cpu/gemm_simd.inc"
//
#include "kernels/cpu/gemm_formats.inc"
//
#include "kernels/cpu/gemm_tree.inc"
//
#include "kernels/cpu/gemm_factored.inc"

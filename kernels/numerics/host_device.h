// Function decorations for code that host translation units of any instruction set, and later
// device code, share.
//
// Headers of the arithmetic contract are included by files that are compiled with different -m
// flags. An ordinary inline function would be emitted once per flag set under one name and the
// linker would keep any of them, so a scalar-only machine could end up with AVX-512 code. A
// VERBATIM_HD function is always inlined and therefore never emitted under a name.
#pragma once

#if defined(__CUDACC__)
#define VERBATIM_HD __host__ __device__ __forceinline__
#define VERBATIM_HD_LAMBDA __attribute__((always_inline))
#else
#define VERBATIM_HD inline __attribute__((always_inline))
#define VERBATIM_HD_LAMBDA __attribute__((always_inline))  // after a lambda's parameters
#endif

// The type of a CUDA stream, without CUDA's headers.
#pragma once

struct CUstream_st;

namespace verbatim::kernels::cuda {

// A queue of work on the device; the same type as cudaStream_t.
using Stream = ::CUstream_st*;

}  // namespace verbatim::kernels::cuda

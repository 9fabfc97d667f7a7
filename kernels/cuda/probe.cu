// Asks the CUDA runtime about a kernel of this library; not for the emulator.
#include <cuda_runtime.h>

#include "kernels/cuda/probe.h"

namespace verbatim::kernels::cuda {
namespace {

__global__ void ProbeKernel() {}

}  // namespace

int ProbeCode(CodeVersion* version) {
  cudaFuncAttributes attributes = {};
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(ProbeKernel));
  version->binary = attributes.binaryVersion;
  version->ptx = attributes.ptxVersion;
  return static_cast<int>(error);
}

}  // namespace verbatim::kernels::cuda

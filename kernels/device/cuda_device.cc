// GPUs in a program that was built with CUDA.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/device/open_backend.h"

namespace verbatim::kernels {

absl::StatusOr<std::unique_ptr<Backend>> OpenCudaDevice(int index, const BackendOptions& options) {
  return cuda::CudaBackend::Create(
      {.device = index, .matrix_units = options.matrix_units, .wgmma = options.wgmma});
}

}  // namespace verbatim::kernels

// GPUs in a program that was built with CUDA.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/device/open_backend.h"

namespace verbatim::kernels {

absl::StatusOr<std::unique_ptr<Backend>> OpenCudaDevice(int index, const BackendOptions& options) {
  cuda::CudaBackendOptions cuda;
  cuda.device = index;
  cuda.matrix_units = options.matrix_units;
  cuda.wgmma = options.wgmma;
  if (options.enforce_eager) cuda.max_graphs = 0;
  return cuda::CudaBackend::Create(cuda);
}

}  // namespace verbatim::kernels

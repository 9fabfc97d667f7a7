// GPUs in a program that was built without CUDA: there are none.
#include "kernels/device/open_backend.h"

namespace verbatim::kernels {

absl::StatusOr<std::unique_ptr<Backend>> OpenCudaDevice(int, const BackendOptions&) {
  return absl::FailedPreconditionError(
      "this program was built without CUDA (configure with the preset cuda, or "
      "-DVERBATIM_CUDA=ON)");
}

}  // namespace verbatim::kernels

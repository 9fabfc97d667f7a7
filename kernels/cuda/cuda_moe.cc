// Mixture of experts on the GPU.
#include "kernels/cuda/cuda_backend.h"

namespace verbatim::kernels::cuda {

absl::Status CudaBackend::MoeRoute(const MoeRouteParams&) {
  return absl::UnimplementedError("MoeRoute: not on this backend");
}

absl::Status CudaBackend::MoePermute(const MoePermuteParams&) {
  return absl::UnimplementedError("MoePermute: not on this backend");
}

absl::Status CudaBackend::GroupedGemm(const GroupedGemmParams&) {
  return absl::UnimplementedError("GroupedGemm: not on this backend");
}

absl::Status CudaBackend::MoeCombine(const MoeCombineParams&) {
  return absl::UnimplementedError("MoeCombine: not on this backend");
}

}  // namespace verbatim::kernels::cuda

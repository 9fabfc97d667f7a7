// Without NCCL there are no ranks on GPUs.
#include "parallel/device_ranks.h"

namespace verbatim::parallel {

absl::StatusOr<std::unique_ptr<Communicator>> OnDevice(Communicator& /*host*/,
                                                       kernels::Backend& /*backend*/) {
  return absl::FailedPreconditionError(
      "--device: this program was built without NCCL, which ranks on GPUs exchange their parts by");
}

}  // namespace verbatim::parallel

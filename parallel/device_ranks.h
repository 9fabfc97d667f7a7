// Ranks that exchange memory of GPUs.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"

namespace verbatim::parallel {

// The same ranks as `host`, exchanging memory of `backend`, a CUDA backend, by NCCL; everything
// else still goes through `host`. All ranks call this at once, on the threads that created their
// backends. Both must outlive the result (see device_communicator.h for when it is done with the
// backend).
// FAILED_PRECONDITION where this program was built without NCCL or NCCL refuses, naming --device.
absl::StatusOr<std::unique_ptr<Communicator>> OnDevice(Communicator& host,
                                                       kernels::Backend& backend);

}  // namespace verbatim::parallel

// Ranks on GPUs, by NCCL.
#include <cstring>
#include <string>
#include <utility>

#include "kernels/cuda/cuda_backend.h"
#include "parallel/device_communicator.h"
#include "parallel/device_ranks.h"
#include "parallel/nccl_link.h"

namespace verbatim::parallel {
namespace {

// Made by rank 0.
absl::StatusOr<ncclUniqueId> AgreeOnId(Communicator& host, const NcclFunctions& nccl) {
  if (host.rank() == 0) {
    auto id = MakeNcclId(nccl);
    if (!id.ok()) return id;
    absl::Status told = host.Announce(std::string(id->internal, sizeof(id->internal)));
    if (!told.ok()) return told;
    return id;
  }
  const absl::StatusOr<std::string> bytes = host.NextAnnouncement();
  if (!bytes.ok()) return bytes.status();
  ncclUniqueId id;
  if (bytes->size() != sizeof(id.internal)) {
    return absl::InternalError("rank 0 announced no id of NCCL's");
  }
  std::memcpy(id.internal, bytes->data(), sizeof(id.internal));
  return id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> OnDevice(Communicator& host,
                                                       kernels::Backend& backend) {
  const auto* cuda = dynamic_cast<const kernels::cuda::CudaBackend*>(&backend);
  if (cuda == nullptr) return absl::InvalidArgumentError("the backend is not a GPU's");
  const absl::StatusOr<NcclFunctions> nccl = OpenNccl();
  if (!nccl.ok()) return nccl.status();
  const absl::StatusOr<ncclUniqueId> id = AgreeOnId(host, *nccl);
  if (!id.ok()) return id.status();
  auto link = NcclLink::Connect(*nccl, *id, host.rank(), host.size(), cuda->stream(),
                                [&host] { return host.failure(); });
  if (!link.ok()) return link.status();
  auto ranks = MakeDeviceCommunicator(host, backend, *std::move(link));
  if (absl::Status tried = TryExchanges(*ranks, backend); !tried.ok()) return tried;
  return ranks;
}

}  // namespace verbatim::parallel

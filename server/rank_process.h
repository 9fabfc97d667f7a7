// The processes of a server whose model is shared out among ranks: what each of them opens, and
// what those other than rank 0 do.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "server/server_config.h"

namespace verbatim::server {

// Ends of this process among the ranks; both null where there is one rank.
struct Ranks {
  std::unique_ptr<parallel::Communicator> host;    // as the launcher made them
  std::unique_ptr<parallel::Communicator> device;  // the same on a GPU's memory, or null

  parallel::Communicator* communicator() const {
    return device != nullptr ? device.get() : host.get();
  }
};

// Whether this process prints and serves: it is rank 0, or was started alone.
bool IsFirstRank();

// FAILED_PRECONDITION, naming the flag, where --tensor-parallel-size does not fit what was
// launched.
absl::StatusOr<Ranks> JoinRanks(const ServerConfig& config);

// The backend that the configuration names; of GPUs, each rank of a machine takes one of its own.
absl::StatusOr<std::unique_ptr<kernels::Backend>> OpenRankBackend(const ServerConfig& config,
                                                                  Ranks* ranks);

// A rank other than 0, from loading to the end. The process's exit status: 0 where rank 0 ended in
// order. Prints nothing but that rank 0 has gone without a word.
int RunFollowerRank(ServerConfig config, Ranks ranks);

}  // namespace verbatim::server

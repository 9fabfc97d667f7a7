// The processes of one server: how a launcher started them, and how they find each other.
#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"

namespace verbatim::parallel {

// This process among those that mpirun (or another launcher) started, by the variables that it set;
// unset: it was started alone. Open MPI and the PMI of MPICH and Slurm are known.
struct LaunchedRank {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among those of this machine
};
std::optional<LaunchedRank> FindLaunchedRank();

// Joins the `size` > 1 ranks that were launched: memory of the CPU is exchanged over MPI, the rest
// over sockets of their own, whose end tells of a rank's death. Once in a process, by its main
// thread; the result must be destroyed by it too. FAILED_PRECONDITION, naming
// --tensor-parallel-size: the program was built without MPI, or was not launched as so many ranks.
// UNAVAILABLE: the ranks do not find each other.
absl::StatusOr<std::unique_ptr<Communicator>> JoinRanks(int size);

// What JoinRanks refuses, without joining.
absl::Status CheckRanks(int size);

}  // namespace verbatim::parallel

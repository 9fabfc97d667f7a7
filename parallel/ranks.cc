// How a launcher started the processes of one server.
#include "parallel/ranks.h"

#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace verbatim::parallel {
namespace {

std::optional<int> NumberIn(const char* variable) {
  const char* text = std::getenv(variable);
  int number = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &number)) return std::nullopt;
  return number;
}

}  // namespace

std::optional<LaunchedRank> FindLaunchedRank() {
  struct Names {
    const char *rank, *size, *local_rank;
  };
  for (const Names& names :
       {Names{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
        Names{"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"}}) {
    const std::optional<int> rank = NumberIn(names.rank), size = NumberIn(names.size);
    if (!rank.has_value() || !size.has_value()) continue;
    std::optional<int> local_rank = NumberIn(names.local_rank);
    if (!local_rank.has_value()) local_rank = NumberIn("SLURM_LOCALID");
    return LaunchedRank{*rank, *size, local_rank.value_or(*rank)};
  }
  return std::nullopt;
}

absl::Status CheckRanks(int size) {
  const auto refuse = [](const std::string& why) {
    return absl::FailedPreconditionError(absl::StrCat("--tensor-parallel-size: ", why));
  };
  const std::optional<LaunchedRank> launched = FindLaunchedRank();
#ifndef VERBATIM_MPI
  if (size > 1) return refuse("this program was built without MPI");
#endif
  if (size > 1 && !launched.has_value()) {
    return refuse(absl::StrCat(size, " ranks are started by a launcher: mpirun -n ", size,
                               " verbatim serve ..."));
  }
  if (launched.has_value() && launched->size != size) {
    return refuse(
        absl::StrCat(size, " does not fit the ", launched->size, " ranks that were launched"));
  }
  return absl::OkStatus();
}

#ifndef VERBATIM_MPI
absl::StatusOr<std::unique_ptr<Communicator>> JoinRanks(int size) {
  absl::Status status = CheckRanks(size);
  if (!status.ok()) return status;
  return absl::FailedPreconditionError("--tensor-parallel-size: there is one rank");
}
#endif

}  // namespace verbatim::parallel

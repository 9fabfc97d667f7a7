// The processes of a server whose model is shared out among ranks.
#include "server/rank_process.h"

#include <cstdio>
#include <future>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model_setup.h"
#include "kernels/device/open_backend.h"
#include "model/checkpoint.h"
#include "parallel/device_ranks.h"
#include "parallel/ranks.h"

namespace verbatim::server {
namespace {

absl::Status Follow(ServerConfig& config, Ranks* ranks) {
  auto backend = OpenRankBackend(config, ranks);
  if (!backend.ok()) return backend.status();
  auto checkpoint = model::Checkpoint::Open(config.model);
  if (!checkpoint.ok()) return checkpoint.status();
  // Reads every weight once; meanwhile they are packed.
  const std::future<std::string> fingerprint = std::async(
      std::launch::async, [model = checkpoint->get()] { return model->WeightsFingerprint(); });
  absl::Status resolved = config.Resolve((*checkpoint)->config());
  if (!resolved.ok()) return resolved;
  engine::EngineConfig engine_config = config.ToEngineConfig();
  engine_config.communicator = ranks->communicator();
  absl::Status followed = engine::RunFollower(engine_config, **backend, **checkpoint);
  ranks->device.reset();  // before the backend, which may be waiting for messages
  return followed;
}

}  // namespace

bool IsFirstRank() {
  const auto launched = parallel::FindLaunchedRank();
  return !launched.has_value() || launched->rank == 0;
}

absl::StatusOr<Ranks> JoinRanks(const ServerConfig& config) {
  absl::Status fits = parallel::CheckRanks(config.tensor_parallel_size);
  if (!fits.ok()) return fits;
  Ranks ranks;
  if (config.tensor_parallel_size == 1) return ranks;
  auto joined = parallel::JoinRanks(config.tensor_parallel_size);
  if (!joined.ok()) return joined.status();
  ranks.host = *std::move(joined);
  return ranks;
}

absl::StatusOr<std::unique_ptr<kernels::Backend>> OpenRankBackend(const ServerConfig& config,
                                                                  Ranks* ranks) {
  kernels::BackendOptions options = config.ToBackendOptions();
  if (ranks->host == nullptr || !config.OnGpu()) return kernels::OpenBackend(options);
  if (options.device != "cuda") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--device: ", options.device, " is one GPU for all ranks; cuda gives each its own"));
  }
  options.device = absl::StrCat("cuda:", parallel::FindLaunchedRank()->local_rank);
  auto backend = kernels::OpenBackend(options);
  if (!backend.ok()) return backend;
  auto device = parallel::OnDevice(*ranks->host, **backend);
  if (!device.ok()) return device.status();
  ranks->device = *std::move(device);
  return backend;
}

int RunFollowerRank(ServerConfig config, Ranks ranks) {
  const absl::Status status = Follow(config, &ranks);
  if (status.ok()) return 0;
  ranks.host->Abort(status);
  // That rank 0 is gone; it says everything else itself.
  const absl::Status failure = ranks.host->failure();
  if (absl::StartsWith(failure.message(), "rank 0 has ended") ||
      absl::StartsWith(failure.message(), "rank 0 cannot be reached")) {
    std::fprintf(stderr, "verbatim serve: %s\n", std::string(failure.message()).c_str());
  }
  return 1;
}

}  // namespace verbatim::server

// Servers of a mixture of experts for experiments, and where its tokens' slots went.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lab/server_process.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

// How experts are limited. A deterministic request is limited by none of this.
struct ExpertLimit {
  double capacity_factor = 0;  // 0: none
  std::string overflow = "drop";

  std::string Name() const;  // "no limit", "1.25 drop"
};

// "off", "1.25" (which drops), "1.25:drop" or "1.25:next". INVALID_ARGUMENT for anything else.
absl::StatusOr<ExpertLimit> ParseExpertLimit(const std::string& text);

struct MoeServerOptions {
  std::string model;
  std::string server_binary;  // empty: this program
  std::string device = "cpu";
  std::string dtype = "bfloat16";  // activations of throughput mode
  int64_t max_num_seqs = 64;
  std::string kv_cache_bytes = "512MiB";
};

// INVALID_ARGUMENT when the model is dense.
absl::StatusOr<std::unique_ptr<ServerProcess>> StartMoeServer(
    const MoeServerOptions& options, const ExpertLimit& limit,
    const std::function<void(const std::string&)>& say);

// Slots (a token has one for each of its experts) between two looks at a server, over all layers.
struct ExpertSlots {
  int64_t slots = 0, lost = 0, rerouted = 0;
  double imbalance = 0;  // busiest expert's tokens over the mean; the worst layer

  void Add(const v1::GetServerInfoResponse& before, const v1::GetServerInfoResponse& after,
           int64_t experts_per_token);
  nlohmann::json ToJson() const;
  double lost_share() const;
  double rerouted_share() const;
};

}  // namespace verbatim::lab

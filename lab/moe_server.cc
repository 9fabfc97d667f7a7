// Flags of the servers, differences of their counters.
#include "lab/moe_server.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace verbatim::lab {
namespace {

constexpr absl::Duration kStartTimeout = absl::Minutes(3);

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

}  // namespace

std::string ExpertLimit::Name() const {
  return capacity_factor > 0 ? absl::StrCat(capacity_factor, " ", overflow) : "no limit";
}

absl::StatusOr<ExpertLimit> ParseExpertLimit(const std::string& text) {
  ExpertLimit limit;
  if (text == "off") return limit;
  const size_t colon = text.find(':');
  if (colon != std::string::npos) limit.overflow = text.substr(colon + 1);
  if (!absl::SimpleAtod(text.substr(0, colon), &limit.capacity_factor) ||
      !(limit.capacity_factor > 0 && limit.capacity_factor <= 1e6) ||
      (limit.overflow != "drop" && limit.overflow != "next")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text, "' is not off, nor a factor above 0 with :drop or :next after it or nothing"));
  }
  return limit;
}

absl::StatusOr<std::unique_ptr<ServerProcess>> StartMoeServer(
    const MoeServerOptions& options, const ExpertLimit& limit,
    const std::function<void(const std::string&)>& say) {
  say(absl::StrCat("starting a server, experts' capacity: ", limit.Name()));
  std::vector<std::string> flags = {
      absl::StrCat("--model=", options.model),
      absl::StrCat("--dtype=", options.dtype),
      absl::StrCat("--kv-cache-bytes=", options.kv_cache_bytes),
      absl::StrCat("--device=", options.device),
      absl::StrCat("--max-num-seqs=", options.max_num_seqs),
      absl::StrCat("--max-num-batched-tokens=", std::max<int64_t>(512, options.max_num_seqs))};
  if (limit.capacity_factor > 0) {
    flags.push_back(absl::StrCat("--moe-capacity-factor=", limit.capacity_factor));
    flags.push_back(absl::StrCat("--moe-overflow=", limit.overflow));
  }
  auto server = ServerProcess::Start(options.server_binary, flags, kStartTimeout, say);
  if (!server.ok()) return server.status();
  const auto model = (*server)->client()->GetModelInfo();
  if (!model.ok()) return model.status();
  if (model->num_experts() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.model, " is a dense model; this needs a mixture of experts"));
  }
  say(absl::StrFormat("ready after %.2f s", (*server)->ready_seconds()));
  return server;
}

void ExpertSlots::Add(const v1::GetServerInfoResponse& before,
                      const v1::GetServerInfoResponse& after, int64_t experts_per_token) {
  const v1::ExpertStatistics none;
  for (int i = 0; i < after.experts_size(); ++i) {
    const v1::ExpertStatistics& now = after.experts(i);
    const v1::ExpertStatistics& then = i < before.experts_size() ? before.experts(i) : none;
    slots += (now.tokens() - then.tokens()) * experts_per_token;
    lost += now.lost_slots() - then.lost_slots();
    rerouted += now.rerouted_slots() - then.rerouted_slots();
    int64_t most = 0, sum = 0;
    for (int e = 0; e < now.tokens_per_expert_size(); ++e) {
      const int64_t tokens = now.tokens_per_expert(e) -
                             (e < then.tokens_per_expert_size() ? then.tokens_per_expert(e) : 0);
      most = std::max(most, tokens);
      sum += tokens;
    }
    imbalance = std::max(imbalance, Share(most * now.tokens_per_expert_size(), sum));
  }
}

double ExpertSlots::lost_share() const { return Share(lost, slots); }
double ExpertSlots::rerouted_share() const { return Share(rerouted, slots); }

nlohmann::json ExpertSlots::ToJson() const {
  return {{"slots", slots},
          {"lost", lost},
          {"lost_share", lost_share()},
          {"rerouted", rerouted},
          {"rerouted_share", rerouted_share()},
          {"worst_imbalance", imbalance}};
}

}  // namespace verbatim::lab

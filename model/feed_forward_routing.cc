// Which experts tokens went to, as the device has it: the last step's, and counts of all.
#include <algorithm>
#include <numeric>
#include <utility>

#include "model/feed_forward.h"

namespace verbatim::model {

absl::StatusOr<FeedForward::Routing> FeedForward::LastRouting() {
  const Routing none{.rows = 0, .experts = {}, .wanted = {}};
  if (num_moe_layers_ == 0) return none;
  if (pending_rows_ > 0) {
    if (absl::Status fetched = FetchRouting(); !fetched.ok()) return fetched;
  }
  if (fetched_rows_ == 0) return none;
  return Routing{.rows = fetched_rows_, .experts = host_experts_, .wanted = host_wanted_};
}

absl::Status FeedForward::FetchRouting() {
  const int64_t top_k = config_.moe.experts_per_token;
  const size_t slots = static_cast<size_t>(pending_rows_ * top_k);  // of a layer
  const size_t stride = static_cast<size_t>(pending_computed_rows_ * top_k);
  const size_t all = stride * static_cast<size_t>(num_moe_layers_);
  const int64_t rows = std::exchange(pending_rows_, 0);
  fetched_rows_ = 0;
  const bool limited = capacity_ != 0;
  host_experts_.resize(all);
  host_wanted_.resize(limited ? all : 0);
  absl::Status status =
      backend_.CopyToHost(host_experts_.data(), experts_->data(), all * sizeof(int32_t));
  if (limited) {
    status.Update(backend_.CopyToHost(host_wanted_.data(), wanted_->data(), all * sizeof(int32_t)));
  }
  if (!status.ok()) return status;
  // Without padding.
  for (std::vector<int32_t>* host : {&host_experts_, &host_wanted_}) {
    if (host->empty() || stride == slots) continue;
    for (size_t i = 1; i < static_cast<size_t>(num_moe_layers_); ++i) {
      std::copy_n(host->begin() + i * stride, slots, host->begin() + i * slots);
    }
    host->resize(slots * static_cast<size_t>(num_moe_layers_));
  }
  fetched_rows_ = rows;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int64_t>> FeedForward::Totals() {
  std::vector<int64_t> totals(static_cast<size_t>(num_moe_layers_ * (config_.moe.num_experts + 2)));
  if (totals.empty()) return totals;
  absl::Status status =
      backend_.CopyToHost(totals.data(), totals_->data(), totals.size() * sizeof(int64_t));
  if (!status.ok()) return status;
  return totals;
}

absl::Status FeedForward::Forget() {
  pending_rows_ = fetched_rows_ = 0;
  absl::StatusOr<std::vector<int64_t>> totals = Totals();
  if (!totals.ok()) return totals.status();
  forgotten_ = *std::move(totals);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MoeStatistics>> FeedForward::Statistics() {
  absl::StatusOr<std::vector<int64_t>> totals = Totals();
  if (!totals.ok()) return totals.status();
  for (size_t i = 0; i < forgotten_.size(); ++i) (*totals)[i] -= forgotten_[i];
  std::vector<MoeStatistics> statistics;
  auto counter = totals->begin();
  for (const Layer& layer : layers_) {
    if (layer.moe_index < 0) continue;
    MoeStatistics& mixture = statistics.emplace_back();
    mixture.layer = &layer - layers_.data();
    mixture.tokens_per_expert.assign(counter, counter + config_.moe.num_experts);
    counter += config_.moe.num_experts;
    mixture.lost_slots = *counter++;
    mixture.rerouted_slots = *counter++;
    mixture.tokens = std::accumulate(mixture.tokens_per_expert.begin(),
                                     mixture.tokens_per_expert.end(), mixture.lost_slots) /
                     config_.moe.experts_per_token;
  }
  return statistics;
}

}  // namespace verbatim::model

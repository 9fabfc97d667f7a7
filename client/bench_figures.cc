// Adding up calls.
#include "client/bench_figures.h"

#include <algorithm>
#include <map>
#include <utility>

namespace verbatim::client {

double TimePerOutputTokenMs(const CallRecord& record) {
  const auto ttft = record.time_to_first_token();
  const int64_t tokens = record.output_tokens();
  if (!ttft.has_value() || tokens < 2) return 0;
  return 1e3 * (record.end_to_end_latency() - *ttft) / static_cast<double>(tokens - 1);
}

void BenchFigures::Add(const CallRecord& record, const Goodput& goodput) {
  if (record.ended == TimePoint()) return;
  ++requests;
  if (!record.status.ok()) {
    ++failed;
    return;
  }
  ++completed;
  input_tokens += record.accepted.prompt_tokens();
  if (record.usage.has_value()) cached_input_tokens += record.usage->cached_prompt_tokens();
  output_tokens += record.output_tokens();
  const auto ttft = record.time_to_first_token();
  const double tpot = TimePerOutputTokenMs(record);
  if (ttft.has_value()) ttft_ms.push_back(1e3 * *ttft);
  if (record.output_tokens() > 1) tpot_ms.push_back(tpot);
  for (double gap : record.inter_token_latencies()) itl_ms.push_back(1e3 * gap);
  e2el_ms.push_back(1e3 * record.end_to_end_latency());
  client_queue_time_ms.push_back(1e3 * SecondsBetween(record.scheduled, record.started));
  if (goodput.given() && goodput.Met({1e3 * ttft.value_or(0), tpot, e2el_ms.back()})) ++good;
}

const std::vector<double>& BenchFigures::Metric(const std::string& name) const {
  if (name == "ttft") return ttft_ms;
  if (name == "tpot") return tpot_ms;
  if (name == "itl") return itl_ms;
  if (name == "client_queue_time") return client_queue_time_ms;
  return e2el_ms;
}

double PeakOutputTokensPerSecond(const std::vector<CallRecord>& records) {
  TimePoint start = TimePoint::max();
  for (const CallRecord& record : records) {
    if (record.status.ok()) start = std::min(start, record.started);
  }
  std::map<int64_t, int64_t> tokens_in_second;
  int64_t most = 0;
  for (const CallRecord& record : records) {
    if (!record.status.ok()) continue;
    for (const DeltaRecord& delta : record.deltas) {
      int64_t& tokens = tokens_in_second[static_cast<int64_t>(SecondsBetween(start, delta.time))];
      tokens += delta.tokens;
      most = std::max(most, tokens);
    }
  }
  return static_cast<double>(most);
}

int64_t PeakConcurrency(const std::vector<CallRecord>& records) {
  std::vector<std::pair<TimePoint, int64_t>> changes;
  for (const CallRecord& record : records) {
    if (!record.status.ok()) continue;
    changes.emplace_back(record.started, 1);
    changes.emplace_back(record.ended, -1);
  }
  std::sort(changes.begin(), changes.end());  // ends before beginnings of the same moment
  int64_t open = 0, most = 0;
  for (const auto& [time, change] : changes) most = std::max(most, open += change);
  return most;
}

}  // namespace verbatim::client

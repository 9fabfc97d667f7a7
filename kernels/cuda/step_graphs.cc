// Recording, finding and dropping of graphs.
#include "kernels/cuda/step_graphs.h"

#include <algorithm>

#include "absl/status/statusor.h"

namespace verbatim::kernels::cuda {

int64_t GraphRows(int64_t sequences) {
  if (sequences > kMaxGraphRows) return sequences;
  if (sequences <= 2) return sequences;
  return sequences <= 4 ? 4 : (sequences + 7) / 8 * 8;
}

int64_t GraphCuts(int64_t cuts) {
  int64_t power = 1;
  while (power < cuts) power *= 2;
  return power >= 4 && power / 4 * 3 >= cuts ? power / 4 * 3 : power;
}

runtime::Graph* StepGraphs::Find(const Key& key) {
  const auto found = graphs_.find(key);
  if (found == graphs_.end()) return nullptr;
  found->second.last_use = ++uses_;
  return found->second.graph;
}

int64_t StepGraphs::NumberOf(const Key& key) const {
  const auto found = graphs_.find(key);
  return found == graphs_.end() ? 0 : found->second.number;
}

absl::Status StepGraphs::Record(const Key& key, absl::FunctionRef<absl::Status()> operations) {
  if (absl::Status begun = runtime::BeginRecording(stream_); !begun.ok()) return begun;
  absl::Status put = operations();
  // Also after a failure, which is then the one to report.
  const absl::StatusOr<runtime::Graph*> graph = runtime::EndRecording(stream_);
  if (!put.ok()) {
    if (graph.ok()) runtime::DestroyGraph(*graph);
    return put;
  }
  if (!graph.ok()) return graph.status();
  if (graphs_.size() == most_) {
    Destroy(std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) {
      return a.second.last_use < b.second.last_use;
    }));
  }
  graphs_[key] = {.graph = *graph, .last_use = ++uses_, .number = ++recorded_};
  return absl::OkStatus();
}

void StepGraphs::Destroy(std::map<Key, Entry>::iterator entry) {
  // A device that has failed runs nothing.
  runtime::Synchronize(stream_).IgnoreError();
  runtime::DestroyGraph(entry->second.graph);
  graphs_.erase(entry);
}

void StepGraphs::Clear() {
  while (!graphs_.empty()) Destroy(graphs_.begin());
}

}  // namespace verbatim::kernels::cuda

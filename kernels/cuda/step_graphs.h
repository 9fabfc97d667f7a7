// Recorded decode steps, by what their kernels' arguments depend on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"

namespace verbatim::kernels::cuda {

// Rows of a decode step of so many sequences: 1, 2, 4, then multiples of 8 up to kMaxGraphRows, as
// in vLLM; above that the sequences themselves, and such steps are not recorded.
inline constexpr int64_t kMaxGraphRows = 256;
int64_t GraphRows(int64_t sequences);

// Cuts that a step's attention is launched for where its longest history has `cuts`: 2^n or 3 ·
// 2^n. Blocks for cuts that a row does not have end at once; powers of two alone would make up to
// half of all blocks such, this makes it a third.
int64_t GraphCuts(int64_t cuts);

// At most so many are kept; the one that was not used for the longest time goes first.
class StepGraphs {
 public:
  using Key = std::vector<int64_t>;

  StepGraphs(size_t most, Stream stream) : most_(most), stream_(stream) {}
  ~StepGraphs() { Clear(); }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // Null: there is none. Valid until the next call.
  runtime::Graph* Find(const Key& key);
  // The number of the graph that Find would give, 0 for none, or that Record would next give: how
  // many had been recorded with it.
  int64_t NumberOf(const Key& key) const;
  int64_t next_number() const { return recorded_ + 1; }
  // Records what `operations` put on the stream; nothing of it runs.
  absl::Status Record(const Key& key, absl::FunctionRef<absl::Status()> operations);
  void Clear();
  size_t size() const { return graphs_.size(); }

 private:
  struct Entry {
    runtime::Graph* graph = nullptr;
    uint64_t last_use = 0;
    int64_t number = 0;
  };
  // Graphs may be running.
  void Destroy(std::map<Key, Entry>::iterator entry);

  const size_t most_;
  const Stream stream_;
  std::map<Key, Entry> graphs_;
  uint64_t uses_ = 0;
  int64_t recorded_ = 0;
};

}  // namespace verbatim::kernels::cuda

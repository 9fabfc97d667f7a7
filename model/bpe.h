// The merge step of byte-pair encoding: a sequence of symbols shrinks by the merge of lowest rank
// until none applies.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"

namespace verbatim::model {

struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t result;
  int32_t rank;  // lower merges first; equal ranks go from left to right
};

// Immutable after construction, for use from any thread.
class Bpe {
 public:
  Bpe() = default;
  // A pair named twice keeps its last merge, as in Hugging Face tokenizers.
  explicit Bpe(absl::Span<const BpeMerge> merges);

  // Merges symbols[begin, end of vector) in place; n symbols take O(n log n).
  void MergeFrom(size_t begin, std::vector<int32_t>* symbols) const;

 private:
  struct Target {
    int32_t rank;
    int32_t result;
  };
  static constexpr int32_t kNoMerge = INT32_MAX;

  Target Find(int32_t left, int32_t right) const;
  void MergeShort(size_t begin, std::vector<int32_t>* symbols) const;
  void MergeLong(size_t begin, std::vector<int32_t>* symbols) const;

  absl::flat_hash_map<uint64_t, Target> merges_;
};

}  // namespace verbatim::model

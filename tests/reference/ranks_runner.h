// Forward passes of several ranks, each a thread with a backend of its own, for tests that compare
// their logits with one rank's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/transformer.h"
#include "parallel/communicator.h"

namespace verbatim::model {

// [steps · sequences][vocab]
using LogitRows = std::vector<std::vector<float>>;

// What ranks compute on.
struct RankPlace {
  // 0 where there is one rank.
  std::function<std::unique_ptr<kernels::Backend>(int rank)> make_backend;
  int32_t num_pages = 32;  // of 16 tokens, shared out among the sequences; no multiple of 7
  // The ranks' communicator for memory of that backend, given the host's; null: the host's serves.
  std::function<std::unique_ptr<parallel::Communicator>(parallel::Communicator& host,
                                                        kernels::Backend& backend)>
      on_device;
  // See every rank (0 where there is one) before it begins, and when it has done its work; may be
  // null.
  std::function<void(int rank, Transformer& transformer)> before;
  std::function<void(int rank, kernels::Backend& backend)> at_end;
};

// A rank's backend, weights and cache.
struct Rank {
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<parallel::Communicator> device;  // null where the host's serves
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<kernels::KvCache> cache;
};

// `communicator` is null with one rank.
absl::StatusOr<Rank> MakeRank(const RankPlace& place, const Checkpoint& checkpoint,
                              parallel::Communicator* communicator);

// Sequences: prompts of so many tokens in chunks of at most `chunk`, then decode steps of the first
// so many sequences each.
struct RankWork {
  std::vector<int32_t> prompts = {150, 7};
  std::vector<int32_t> decode = {2, 2, 2};
  int32_t chunk = 256;
};

// The logits of each step's last rows, by step.
absl::StatusOr<LogitRows> Generate(Rank& rank, const kernels::NumericMode& mode,
                                   const RankWork& work);

// The same by one rank, and by `degree` ranks.
absl::StatusOr<LogitRows> GenerateAlone(const RankPlace& place, const Checkpoint& checkpoint,
                                        const kernels::NumericMode& mode, const RankWork& work);
absl::StatusOr<LogitRows> GenerateOnRanks(const RankPlace& place, const Checkpoint& checkpoint,
                                          int degree, const kernels::NumericMode& mode,
                                          const RankWork& work);

}  // namespace verbatim::model

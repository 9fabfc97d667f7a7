// What rank 0 tells the other ranks to compute, and the loop in which they do.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/ops/numeric_mode.h"
#include "model/transformer.h"

namespace verbatim::model {

// One call of Transformer. Ranks run the same program on machines of one byte order.
struct StepAnnouncement {
  kernels::NumericMode mode;
  bool logits = false;
  ForwardBatch batch;               // without logits; its spans' pages lie in `pages`
  DecodeTerms terms;                // without logits
  std::vector<int32_t> logit_rows;  // with them
  std::vector<int32_t> pages;       // of all spans, one after the other
};

std::string EncodeForward(const ForwardBatch& batch, const kernels::NumericMode& mode,
                          const DecodeTerms& terms);
std::string EncodeLogits(absl::Span<const int32_t> rows, const kernels::NumericMode& mode);
// INVALID_ARGUMENT for bytes that no Encode made. The batch's spans point into the result.
absl::Status DecodeStep(const std::string& bytes, StepAnnouncement* step);

// Computes what rank 0 announces on this rank's shard, until rank 0 closes (OK) or a rank fails
// (its failure). `transformer` was loaded with the communicator.
absl::Status FollowSteps(Transformer& transformer, kernels::KvCache& cache,
                         parallel::Communicator& communicator);

}  // namespace verbatim::model

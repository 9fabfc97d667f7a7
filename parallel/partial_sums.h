// Joins the ranks' parts of matrix products whose columns are shared out among them.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"

namespace verbatim::parallel {

// Under a strong policy the parts, each a node of the reduction tree, are added in the order of the
// tree's top, whatever is exchanged how: small sums go whole from every rank to every rank, which
// costs one exchange; large ones in slices, each summed by one rank and handed round, which costs
// two and moves less. THROUGHPUT leaves order and way to the communicator.
class PartialSums {
 public:
  // Working memory for sums of up to `max_count` elements. Both must outlive the result.
  static absl::StatusOr<std::unique_ptr<PartialSums>> Create(kernels::Backend& backend,
                                                             Communicator& communicator,
                                                             int64_t max_count);

  // y = residual + the sum of all ranks' `partial`, on every rank, all [count]. `residual` (the
  // same on every rank) may be null or y; `partial` is overwritten and may be y. `round` as
  // GemmParams::round_output.
  absl::Status Join(const kernels::NumericMode& mode, float* partial, int64_t count,
                    const float* residual, float* y, bool round);

 private:
  PartialSums(kernels::Backend& backend, Communicator& communicator, int64_t max_count)
      : backend_(backend), communicator_(communicator), max_count_(max_count) {}

  absl::Status JoinWhole(const kernels::NumericMode& mode, float* partial, int64_t count,
                         const float* residual, float* y, bool round);
  absl::Status JoinSlices(const kernels::NumericMode& mode, float* partial, int64_t count,
                          const float* residual, float* y, bool round);

  kernels::Backend& backend_;
  Communicator& communicator_;
  const int64_t max_count_;
  std::unique_ptr<kernels::Buffer> received_;
};

// Elements from which on sums go in slices, with more than two ranks (with two, both ways move the
// same). Which way has no influence on the bits.
inline constexpr int64_t kSlicedCount = int64_t{1} << 14;

}  // namespace verbatim::parallel

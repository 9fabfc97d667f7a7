// Matrix products by oneDNN, from weights reordered once into the layout that it prefers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/dtype.h"
#include "kernels/ops/gemm.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels::cpu {

// A second copy of a weight matrix, in fp32 or bf16, cut by output features into one slice per
// thread of the pool. Each slice is multiplied by oneDNN on its own pool thread with an OpenMP team
// of one, so that no second team of threads spins beside the pool.
//
// oneDNN 2.6 has its fast kernels only for shapes known in advance, so each number of tokens gets
// its own primitives, made on first use (about 0.3 ms a slice) and kept in a bounded cache; the
// layout of the weights does not depend on it. Not thread-safe.
class OnednnWeights {
 public:
  // Widens the rows of `parts` (concatenated) and reorders them. RESOURCE_EXHAUSTED if oneDNN finds
  // no memory, UNIMPLEMENTED if it has no kernel for the type on this processor.
  static absl::StatusOr<std::unique_ptr<OnednnWeights>> Create(
      const CpuContext& context, const std::vector<StoredMatrix>& parts, ActivationType type);
  ~OnednnWeights();
  OnednnWeights(const OnednnWeights&) = delete;
  OnednnWeights& operator=(const OnednnWeights&) = delete;

  // The weight of `params` is this matrix. x is rounded to bf16 where that is the type.
  absl::Status Run(const CpuContext& context, const GemmParams& params);

  size_t size_bytes() const;

 private:
  struct Slice;
  OnednnWeights();

  ActivationType type_ = ActivationType::kF32;
  int64_t cols_ = 0;
  std::vector<std::unique_ptr<Slice>> slices_;
  std::vector<uint16_t> x_bf16_;  // grows to the largest call
};

}  // namespace verbatim::kernels::cpu

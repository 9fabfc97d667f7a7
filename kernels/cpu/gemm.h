// Matrix products on the CPU; contract in kernels/ops/gemm.h.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "kernels/cpu/context.h"
#include "kernels/ops/gemm.h"

namespace verbatim::kernels::cpu {

struct GemmOptions {
  // Large THROUGHPUT products run in oneDNN on a second copy of the weights, 4 (fp32) or 2 (bf16)
  // bytes an element.
  enum class LibraryCopies : uint8_t {
    kNever,       // no second copy: this project's kernels at every size
    kOnFirstUse,  // made by the first call that wants it (about 1 s per 100 million weights)
    kAtLoad,      // made by PackMatrix for the type below, for the other on first use
  };
  LibraryCopies library_copies = LibraryCopies::kOnFirstUse;
  ActivationType library_copies_at_load = ActivationType::kF32;
  // From how many tokens on oneDNN is used; 0 asks the measured rule (gemm.cc).
  int64_t library_min_tokens = 0;
};

// The weight must be a PackedMatrix packed for Gemm on this backend. INVALID_ARGUMENT names the
// parameter that contradicts it; nothing is written then.
absl::Status Gemm(const CpuContext& context, const GemmParams& params);

// The kernel that Gemm runs for that many tokens: "tree", "factored", "bf16" or "onednn"; "none"
// for a weight that it refuses.
std::string_view GemmKernel(const CpuContext& context, const NumericMode& mode,
                            const WeightMatrix& weight, int64_t tokens);

}  // namespace verbatim::kernels::cpu

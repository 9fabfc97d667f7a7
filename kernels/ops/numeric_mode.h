// How an operation must compute: the policy, and the precision of activations where the policy
// leaves it open.
#pragma once

#include <cstdint>

#include "kernels/ops/policy.h"

namespace verbatim::kernels {

enum class ActivationType : uint8_t { kF32, kBF16 };

struct NumericMode {
  Policy policy = Policy::kPortable;
  // THROUGHPUT only; the strong policies fix their own formats (docs/numerics.md). With kBF16 the
  // inputs of matrix products and the residual stream hold values rounded to bf16, at the points
  // where a bf16 PyTorch model rounds them; the buffers stay float arrays.
  ActivationType activations = ActivationType::kF32;
};

}  // namespace verbatim::kernels

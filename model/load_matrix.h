// Packing of a checkpoint's matrices by their canonical names.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"

namespace verbatim::model {

// The matrices' rows one after the other, as one.
inline absl::StatusOr<std::unique_ptr<kernels::WeightMatrix>> LoadMatrix(
    kernels::Backend& backend, const Checkpoint& checkpoint, absl::Span<const std::string> names,
    const kernels::LoadMatrixOptions& options = {}) {
  std::vector<kernels::StoredMatrix> parts;
  for (const std::string& name : names) {
    absl::StatusOr<kernels::StoredMatrix> part = checkpoint.Matrix(name);
    if (!part.ok()) return part.status();
    parts.push_back(*part);
  }
  return backend.LoadMatrix(parts, options);
}

// Whether the mode rounds what an operation writes to bf16.
inline bool RoundsActivations(const kernels::NumericMode& mode) {
  return mode.policy == kernels::Policy::kThroughput &&
         mode.activations == kernels::ActivationType::kBF16;
}

}  // namespace verbatim::model

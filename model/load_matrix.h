// Packing of a checkpoint's matrices by their canonical names, whole or a rank's part of them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"

namespace verbatim::model {

// Some rows of a matrix, one range after the other.
struct RowsOfMatrix {
  std::string name;
  std::vector<Range> rows;
};

// The matrices' rows one after the other, as one.
inline absl::StatusOr<std::unique_ptr<kernels::WeightMatrix>> LoadRows(
    kernels::Backend& backend, const Checkpoint& checkpoint,
    absl::Span<const RowsOfMatrix> matrices, const kernels::LoadMatrixOptions& options = {}) {
  std::vector<kernels::StoredMatrix> parts;
  for (const RowsOfMatrix& matrix : matrices) {
    absl::StatusOr<kernels::StoredMatrix> stored = checkpoint.Matrix(matrix.name);
    if (!stored.ok()) return stored.status();
    for (const Range& rows : matrix.rows) parts.push_back(RowsOf(*stored, rows));
  }
  return backend.LoadMatrix(parts, options);
}

// A whole matrix.
inline absl::StatusOr<std::unique_ptr<kernels::WeightMatrix>> LoadMatrix(
    kernels::Backend& backend, const Checkpoint& checkpoint, const std::string& name,
    const kernels::LoadMatrixOptions& options = {}) {
  absl::StatusOr<kernels::StoredMatrix> stored = checkpoint.Matrix(name);
  if (!stored.ok()) return stored.status();
  return backend.LoadMatrix({*stored}, options);
}

// Columns that were copied: backends may go on reading them.
struct ColumnSlices {
  std::vector<std::vector<std::byte>> bytes;
  // The first matrix that had to be decoded to be cut.
  std::string decoded_name;
  const kernels::WeightMatrix* decoded = nullptr;
};

// Columns of a matrix: a rank's node of the sums over them.
inline absl::StatusOr<std::unique_ptr<kernels::WeightMatrix>> LoadColumns(
    kernels::Backend& backend, const Checkpoint& checkpoint, const std::string& name, Range cols,
    const kernels::LoadMatrixOptions& options, ColumnSlices& slices) {
  absl::StatusOr<kernels::StoredMatrix> stored = checkpoint.Matrix(name);
  if (!stored.ok()) return stored.status();
  MatrixSlice slice = ColumnsOf(*stored, cols);
  auto loaded = backend.LoadMatrix({slice.matrix}, options);
  if (!loaded.ok()) return loaded;
  if (!slice.bytes.empty()) slices.bytes.push_back(std::move(slice.bytes));
  if (slice.decoded && slices.decoded == nullptr) {
    slices.decoded_name = name;
    slices.decoded = loaded->get();
  }
  return loaded;
}

// Whether the mode rounds what an operation writes to bf16.
inline bool RoundsActivations(const kernels::NumericMode& mode) {
  return mode.policy == kernels::Policy::kThroughput &&
         mode.activations == kernels::ActivationType::kBF16;
}

}  // namespace verbatim::model

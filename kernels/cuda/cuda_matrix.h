// Weight matrices in device memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/packed_part.h"

namespace verbatim::kernels::cuda {

// The stored formats, packed; and, for PINNED, the values rounded to bf16 in the same layout.
class CudaMatrix final : public WeightMatrix {
 public:
  // Uploads through `uploader`. INVALID_ARGUMENT names the part and field that is wrong.
  static absl::StatusOr<std::unique_ptr<CudaMatrix>> Load(absl::Span<const StoredMatrix> parts,
                                                          const LoadMatrixOptions& options,
                                                          bool with_bf16, Uploader& uploader);
  ~CudaMatrix() override;

  // Changes whenever a matrix comes into being or goes: while it is the same, so is what a pointer
  // to one points to.
  static uint64_t Generation();

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  size_t size_bytes() const override { return size_bytes_; }
  const LoadMatrixOptions& load_options() const { return options_; }

  // Runs of rows of one format; device pointers inside.
  absl::Span<const PackedPart> parts() const { return parts_; }
  // Empty without `with_bf16`. A run that is stored as BF16 shares its memory.
  absl::Span<const PackedPart> bf16_parts() const { return bf16_parts_; }

 private:
  CudaMatrix(int64_t rows, int64_t cols, const LoadMatrixOptions& options);
  absl::StatusOr<PackedPart> UploadRun(absl::Span<const StoredMatrix> run, int64_t first_row,
                                       bool as_bf16, Uploader& uploader);

  const int64_t rows_, cols_;
  const LoadMatrixOptions options_;
  std::vector<PackedPart> parts_, bf16_parts_;
  std::vector<std::unique_ptr<DeviceBuffer>> memory_;
  size_t size_bytes_ = 0;
};

}  // namespace verbatim::kernels::cuda

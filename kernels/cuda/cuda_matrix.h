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
#include "kernels/cuda/weight_arena.h"

namespace verbatim::kernels::cuda {

// The stored formats; and, for matrix units, the values rounded to bf16, row-major, all parts one
// after the other. Parts that are stored as BF16 lie in that copy.
class CudaMatrix final : public WeightMatrix {
 public:
  // Uploads through `uploader` to memory of `arena`. INVALID_ARGUMENT names the part and field that
  // is wrong.
  static absl::StatusOr<std::unique_ptr<CudaMatrix>> Load(absl::Span<const StoredMatrix> parts,
                                                          const LoadMatrixOptions& options,
                                                          bool with_bf16, WeightArena& arena,
                                                          Uploader& uploader);
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
  // All rows as bf16; no rows without `with_bf16` or where the matrix is not for products.
  const PackedPart& bf16() const { return bf16_; }

 private:
  CudaMatrix(int64_t rows, int64_t cols, const LoadMatrixOptions& options);
  // Device memory that goes with the matrix.
  absl::StatusOr<std::byte*> Memory(size_t size_bytes, WeightArena& arena);
  // Rows of one format. `rows`: where they go as bf16; null to leave that out.
  absl::StatusOr<PackedPart> UploadRun(absl::Span<const StoredMatrix> run, int64_t first_row,
                                       std::byte* rows, WeightArena& arena, Uploader& uploader);

  const int64_t rows_, cols_;
  const LoadMatrixOptions options_;
  std::vector<PackedPart> parts_;
  PackedPart bf16_;
  std::vector<std::shared_ptr<DeviceBuffer>> memory_;  // blocks of the arena
  size_t size_bytes_ = 0;
};

}  // namespace verbatim::kernels::cuda

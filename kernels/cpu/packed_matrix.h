// A weight matrix in the CPU's panel layout (kernels/cpu/gemm_layout.h), values in stored bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/onednn_gemm.h"
#include "kernels/ops/dtype.h"

namespace verbatim::kernels::cpu {

// 64-byte aligned memory; 2 MiB aligned and offered to the kernel as huge pages when large. data()
// is null if there is not enough.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(size_t size_bytes);
  std::byte* data() const { return data_.get(); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  size_t size_bytes_ = 0;
};

// Rows of one format, in order.
struct PanelSegment {
  DType dtype = DType::kF32;
  int64_t row_begin = 0;
  int64_t rows = 0;
  int64_t panel_begin = 0;  // among all panels of the matrix
  int64_t panels = 0;       // rounded up: a panel never spans two segments
  int64_t panel_bytes = 0;
  const std::byte* data = nullptr;
};

class PackedMatrix : public WeightMatrix {
 public:
  ~PackedMatrix() override;

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  size_t size_bytes() const override;

  // Empty where the matrix was not loaded for Gemm.
  absl::Span<const PanelSegment> segments() const { return segments_; }
  int64_t panels() const { return panels_; }
  // As loaded; the bytes belong to the caller of PackMatrix, but for those of random weights, which
  // are made.
  absl::Span<const StoredMatrix> parts() const { return parts_; }
  const LoadMatrixOptions& load_options() const { return load_options_; }
  const GemmOptions& gemm_options() const { return gemm_options_; }
  // tree_joins()[c]: how many tree nodes are complete once chunk c is.
  absl::Span<const uint8_t> tree_joins() const { return tree_joins_; }
  // shard_joins()[c]: -1 while the shard of chunk c goes on, then the joins above it.
  absl::Span<const int8_t> shard_joins() const { return shard_joins_; }

  // The copy for oneDNN, made on the first call; size_bytes() counts it from then on. Not
  // thread-safe: the thread that owns the backend calls it.
  absl::StatusOr<OnednnWeights*> LibraryCopy(const CpuContext& context, ActivationType type) const;

 private:
  friend absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const CpuContext&,
                                                                  absl::Span<const StoredMatrix>,
                                                                  const LoadMatrixOptions&,
                                                                  const GemmOptions&);
  PackedMatrix() = default;
  // Gives a random part its bytes. RESOURCE_EXHAUSTED names how many there is no memory for.
  absl::Status Make(const CpuContext& context, StoredMatrix& part);

  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int64_t panels_ = 0;
  std::vector<StoredMatrix> parts_;
  std::vector<AlignedBytes> made_;  // bytes of random parts
  std::vector<PanelSegment> segments_;
  std::vector<uint8_t> tree_joins_;
  std::vector<int8_t> shard_joins_;
  AlignedBytes storage_;
  LoadMatrixOptions load_options_;
  GemmOptions gemm_options_;
  mutable std::unique_ptr<OnednnWeights> library_copies_[2];  // by ActivationType
};

// Packs `parts`, which share `cols`, their rows concatenated in order. INVALID_ARGUMENT names the
// part and the field that cannot be: no parts, shapes not positive or contradicting each other,
// cols not a multiple of the block or above 2^18, null data.
absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const CpuContext& context,
                                                         absl::Span<const StoredMatrix> parts,
                                                         const LoadMatrixOptions& load_options,
                                                         const GemmOptions& gemm_options);

// Widens row `row` (0 <= row < rows()) to out[cols()], from the bytes as stored.
void DecodeEmbeddingRow(const PackedMatrix& matrix, int64_t row, float* out);

}  // namespace verbatim::kernels::cpu

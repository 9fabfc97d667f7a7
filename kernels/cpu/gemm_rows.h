// The inputs of a matrix product in the forms that its kernels read: gathered by index, and rounded
// to bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/packed_matrix.h"

namespace verbatim::kernels::cpu {

// Row i of `count` begins at x + stride * (rows == nullptr ? i : rows[i]).
struct RowSource {
  const float* x = nullptr;
  int64_t stride = 0;
  const int32_t* rows = nullptr;
  int64_t count = 0;

  const float* At(int64_t i) const { return x + stride * (rows == nullptr ? i : rows[i]); }
};

// What has to be made from the rows of one product, in memory of the caller; nothing where kernels
// can read the source itself.
class InputRows {
 public:
  InputRows() = default;
  // bf16: for the bf16 kernels. The source must outlive this.
  InputRows(const RowSource& source, const PackedMatrix& weight, bool bf16);

  // The work, in independent units; 0: none.
  int64_t units() const { return units_; }
  // Elements of x that the work touches.
  int64_t elements() const { return units_ == 0 ? 0 : source_.count * k_; }
  // Memory that the work fills, a multiple of 64.
  size_t size_bytes() const { return size_bytes_; }
  // 64-byte aligned, size_bytes() long; before Fill and Describe.
  void SetMemory(std::byte* memory) { memory_ = memory; }
  // Units [begin, end).
  void Fill(const GemmKernels& kernels, int64_t begin, int64_t end) const;
  // Points the run's inputs here.
  void Describe(PanelRun& run) const;

 private:
  int64_t TilePairs() const { return bf16_stride_ / 2 * kBf16TileRows; }
  void FillRow(const GemmKernels& kernels, int64_t row, uint16_t* bf16) const;
  float* floats() const { return reinterpret_cast<float*>(memory_ + floats_at_); }
  uint16_t* bf16_rows() const { return reinterpret_cast<uint16_t*>(memory_ + bf16_at_); }
  int32_t* pairs() const { return reinterpret_cast<int32_t*>(memory_ + bf16_at_); }
  float* sums() const { return reinterpret_cast<float*>(memory_ + sums_at_); }

  RowSource source_;
  int64_t k_ = 0, bf16_stride_ = 0;
  bool bf16_ = false;         // rounded rows are wanted
  bool gathered_ = false;     // fp32 rows are wanted and do not lie at even distances
  bool tiled_ = false;        // bf16 as [tiles][bf16_stride_ / 2, kBf16TileRows] pairs, else rows
  bool has_sums_ = false;     // [k / 32, count]
  const float* x_ = nullptr;  // fp32 rows as the kernels read them, where not gathered
  int64_t x_stride_ = 0;
  int64_t units_ = 0;
  size_t size_bytes_ = 0, floats_at_ = 0, bf16_at_ = 0, sums_at_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace verbatim::kernels::cpu

// Which weights the experts of a grouped product have, in device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/packed_part.h"

namespace verbatim::kernels::cuda {

// What one launch computes: the parts of one format that experts have at one position.
struct ExpertParts {
  DType format = DType::kF32;
  int64_t most_rows = 0;              // of a part
  const PackedPart* parts = nullptr;  // [experts], device memory; no rows where there is none
  const void* maps = nullptr;         // of bf16 copies, for wgmma (MakeWeightMaps); or null
};

struct ExpertWeights {
  int64_t rows = 0, cols = 0;  // of every expert's matrix
  int shard_depth = 0;         // likewise
  std::vector<ExpertParts> tables;
};

// Checks a list of matrices and uploads its tables when it first meets it, and knows it afterwards:
// in a running model every layer's are there after the first step.
class ExpertTables {
 public:
  // The uploader must outlive the result. `with_maps`: tables of bf16 copies also have maps.
  static absl::StatusOr<std::unique_ptr<ExpertTables>> Create(size_t size_bytes, bool with_maps,
                                                              Uploader& uploader);

  // The tables of the experts' parts, or of their bf16 copies; valid until the next call.
  // INVALID_ARGUMENT names the matrix that is not this backend's or has another shape.
  // RESOURCE_EXHAUSTED names the bytes needed.
  absl::StatusOr<const ExpertWeights*> Of(absl::Span<const WeightMatrix* const> experts, bool bf16);

  // Changes when tables that were uploaded before lose their place.
  uint64_t epoch() const { return epoch_; }

 private:
  ExpertTables(std::unique_ptr<DeviceBuffer> memory, bool with_maps, Uploader& uploader)
      : memory_(std::move(memory)), with_maps_(with_maps), uploader_(uploader) {}
  void Forget();

  const std::unique_ptr<DeviceBuffer> memory_;
  const bool with_maps_;
  Uploader& uploader_;
  size_t used_bytes_ = 0;
  using Key = std::pair<bool, std::vector<const WeightMatrix*>>;
  std::map<Key, ExpertWeights> known_;  // for this generation of matrices
  uint64_t generation_ = 0, epoch_ = 0;
  Key key_;
};

}  // namespace verbatim::kernels::cuda

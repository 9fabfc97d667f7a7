// Building and remembering tables of experts' weights.
#include "kernels/cuda/expert_tables.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/runtime.h"

namespace verbatim::kernels::cuda {
namespace {

// As CudaMatrix, all of one shape.
absl::StatusOr<std::vector<const CudaMatrix*>> MatricesOf(
    absl::Span<const WeightMatrix* const> weights) {
  if (weights.empty() || weights.size() > kMaxExperts) {
    return absl::InvalidArgumentError(
        absl::StrCat("GroupedGemm: ", weights.size(), " weights are not from 1 to ", kMaxExperts));
  }
  std::vector<const CudaMatrix*> matrices;
  for (size_t e = 0; e < weights.size(); ++e) {
    const auto* matrix = dynamic_cast<const CudaMatrix*>(weights[e]);
    if (matrix == nullptr || !matrix->load_options().for_gemm) {
      return absl::InvalidArgumentError(absl::StrCat(
          "GroupedGemm: weights[", e, "] is not a matrix that this backend loaded for products"));
    }
    matrices.push_back(matrix);
    if (matrix->rows() != matrices[0]->rows() || matrix->cols() != matrices[0]->cols()) {
      return absl::InvalidArgumentError(
          absl::StrCat("GroupedGemm: weights[", e, "] is [", matrix->rows(), ", ", matrix->cols(),
                       "], weights[0] [", matrices[0]->rows(), ", ", matrices[0]->cols(), "]"));
    }
    if (matrix->load_options().shard_depth != matrices[0]->load_options().shard_depth) {
      return absl::InvalidArgumentError(absl::StrCat(
          "GroupedGemm: weights[", e, "] has shards of depth ", matrix->load_options().shard_depth,
          ", weights[0] of ", matrices[0]->load_options().shard_depth));
    }
  }
  return matrices;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertTables>> ExpertTables::Create(size_t size_bytes,
                                                                   bool with_maps,
                                                                   Uploader& uploader) {
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> memory = DeviceBuffer::Create(size_bytes);
  if (!memory.ok()) return memory.status();
  return std::unique_ptr<ExpertTables>(new ExpertTables(*std::move(memory), with_maps, uploader));
}

void ExpertTables::Forget() {
  known_.clear();
  used_bytes_ = 0;
  ++epoch_;
}

absl::StatusOr<const ExpertWeights*> ExpertTables::Of(absl::Span<const WeightMatrix* const> weights,
                                                      bool bf16) {
  if (generation_ != CudaMatrix::Generation()) Forget();
  generation_ = CudaMatrix::Generation();
  key_.first = bf16;
  key_.second.assign(weights.begin(), weights.end());
  if (const auto found = known_.find(key_); found != known_.end()) return &found->second;

  absl::StatusOr<std::vector<const CudaMatrix*>> experts = MatricesOf(weights);
  if (!experts.ok()) return experts.status();
  ExpertWeights result{.rows = experts->front()->rows(),
                       .cols = experts->front()->cols(),
                       .shard_depth = experts->front()->load_options().shard_depth};
  // A table for every (position, format) that occurs; experts' formats may differ.
  std::vector<ExpertParts>& tables = result.tables;
  std::vector<PackedPart> parts;  // [tables][experts]
  bool more = true;
  for (size_t position = 0; more; ++position) {
    const size_t before = tables.size();
    more = false;
    for (size_t e = 0; e < experts->size(); ++e) {
      const CudaMatrix& matrix = *(*experts)[e];
      const absl::Span<const PackedPart> own =
          bf16 ? absl::MakeConstSpan(&matrix.bf16(), 1) : matrix.parts();
      if (position >= own.size()) continue;
      more = true;
      const PackedPart& part = own[position];
      size_t table = before;
      while (table < tables.size() && tables[table].format != part.format) ++table;
      if (table == tables.size()) {
        tables.push_back({.format = part.format});
        parts.resize(tables.size() * experts->size());
      }
      tables[table].most_rows = std::max(tables[table].most_rows, part.rows);
      parts[table * experts->size() + e] = part;
    }
  }
  // Behind the parts the maps, each at a multiple of its size.
  const size_t parts_bytes =
      (parts.size() * sizeof(PackedPart) + kWeightMapBytes - 1) / kWeightMapBytes * kWeightMapBytes;
  std::vector<char> maps(bf16 && with_maps_ ? parts.size() * kWeightMapBytes : 0);
  const size_t size_bytes = parts_bytes + maps.size();
  if (size_bytes > memory_->size_bytes()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("GroupedGemm: the table of ", experts->size(), " experts needs ", size_bytes,
                     " bytes; expert_table_bytes is ", memory_->size_bytes()));
  }
  if (uploader_.closed()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "GroupedGemm: a step cannot be recorded, because the tables of all its layers' "
        "experts are more than expert_table_bytes, ",
        memory_->size_bytes()));
  }
  // In stream order: products that were put on it before read the tables as they were.
  if (used_bytes_ + size_bytes > memory_->size_bytes()) Forget();
  char* const memory = static_cast<char*>(memory_->data()) + used_bytes_;
  auto* device = reinterpret_cast<PackedPart*>(memory);
  absl::Status status = uploader_.Upload(device, parts.data(), parts.size() * sizeof(PackedPart));
  if (!maps.empty()) {
    status.Update(runtime::LaunchStatus(
        "GroupedGemm",
        MakeWeightMaps(parts.data(), static_cast<int64_t>(parts.size()), maps.data())));
    status.Update(uploader_.Upload(memory + parts_bytes, maps.data(), maps.size()));
  }
  if (!status.ok()) return status;
  used_bytes_ += size_bytes;
  for (size_t table = 0; table < tables.size(); ++table) {
    tables[table].parts = device + table * experts->size();
    if (!maps.empty()) {
      tables[table].maps = memory + parts_bytes + table * experts->size() * kWeightMapBytes;
    }
  }
  return &known_.emplace(key_, std::move(result)).first->second;
}

}  // namespace verbatim::kernels::cuda

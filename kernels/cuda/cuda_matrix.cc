// Packing and uploading of weights.
#include "kernels/cuda/cuda_matrix.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/weight_packing.h"
#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/random_matrix.h"

namespace verbatim::kernels::cuda {
namespace {

// What a reduction's stack in the kernels has room for, with a wide margin.
constexpr int64_t kMaxCols = int64_t{1} << 18;
constexpr int64_t kTilesPerUpload = 32;
constexpr int64_t kRowsPerUpload = 256;

absl::Status CheckParts(absl::Span<const StoredMatrix> parts) {
  if (parts.empty()) return absl::InvalidArgumentError("LoadMatrix: no parts");
  for (size_t i = 0; i < parts.size(); ++i) {
    const StoredMatrix& part = parts[i];
    const DTypeInfo info = InfoOf(part.dtype);
    if (part.rows < 1 || part.cols < 1 || part.cols > kMaxCols) {
      return absl::InvalidArgumentError(absl::StrCat("LoadMatrix: parts[", i, "] has rows ",
                                                     part.rows, ", cols ", part.cols, " (at most ",
                                                     kMaxCols, ")"));
    }
    if (const char* error = ContentError(part); error != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("LoadMatrix: parts[", i, "]: ", error));
    }
    if (part.cols != parts[0].cols) {
      return absl::InvalidArgumentError(absl::StrCat("LoadMatrix: parts[", i, "] has ", part.cols,
                                                     " columns, parts[0] ", parts[0].cols));
    }
    if (part.cols % info.block_elements != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("LoadMatrix: parts[", i, "] has ", part.cols, " columns, not a multiple of ",
                       std::string(info.name), "'s ", info.block_elements));
    }
  }
  return absl::OkStatus();
}

std::atomic<uint64_t> generation{0};

}  // namespace

CudaMatrix::CudaMatrix(int64_t rows, int64_t cols, const LoadMatrixOptions& options)
    : rows_(rows), cols_(cols), options_(options) {
  generation.fetch_add(1);
}

CudaMatrix::~CudaMatrix() { generation.fetch_add(1); }

uint64_t CudaMatrix::Generation() { return generation.load(); }

absl::StatusOr<std::byte*> CudaMatrix::Memory(size_t size_bytes, WeightArena& arena) {
  absl::StatusOr<WeightArena::Piece> piece = arena.Allocate(size_bytes);
  if (!piece.ok()) return piece.status();
  size_bytes_ += size_bytes;
  memory_.push_back(std::move(piece->block));
  return piece->data;
}

absl::StatusOr<PackedPart> CudaMatrix::UploadRun(absl::Span<const StoredMatrix> run,
                                                 int64_t first_row, std::byte* rows,
                                                 WeightArena& arena, Uploader& uploader) {
  PackedPart part;
  part.format = run[0].dtype;
  part.first_row = first_row;
  part.cols = cols_;
  for (const StoredMatrix& matrix : run) part.rows += matrix.rows;
  const size_t pitch_bytes = static_cast<size_t>(RowPitch(cols_)) * 2;
  if (part.format == DType::kBF16) {
    if (rows == nullptr) {
      absl::StatusOr<std::byte*> memory =
          Memory(static_cast<size_t>(part.rows) * pitch_bytes, arena);
      if (!memory.ok()) return memory.status();
      rows = *memory;
    }
    part.quants = rows;
    for (const StoredMatrix& matrix : run) {
      absl::Status status =
          matrix.random.has_value()
              ? runtime::LaunchStatus("LoadMatrix", LaunchRandomWeights({.weights = *matrix.random,
                                                                         .rows = matrix.rows,
                                                                         .cols = cols_,
                                                                         .rows_bf16 = rows},
                                                                        uploader.stream()))
              : uploader.UploadRows(rows, pitch_bytes, matrix.data,
                                    static_cast<size_t>(matrix.row_bytes()),
                                    static_cast<size_t>(matrix.rows));
      if (!status.ok()) return status;
      rows += static_cast<size_t>(matrix.rows) * pitch_bytes;
    }
    return part;
  }
  const PackedSizes sizes = PackedSizesOf(part.format, part.tiles(), cols_);
  std::byte* arrays[4] = {};
  const size_t array_sizes[4] = {sizes.quants, sizes.high, sizes.scales, sizes.super};
  for (int i = 0; i < 4; ++i) {
    if (array_sizes[i] == 0) continue;
    absl::StatusOr<std::byte*> memory = Memory(array_sizes[i], arena);
    if (!memory.ok()) return memory.status();
    arrays[i] = *memory;
  }
  PackedTiles tiles;
  const PackedSizes before_unit = PackedSizesOf(part.format, 1, cols_);
  const size_t unit[4] = {before_unit.quants, before_unit.high, before_unit.scales,
                          before_unit.super};
  for (int64_t tile = 0; tile < part.tiles(); tile += kTilesPerUpload) {
    const int64_t row = tile * kTileRows;
    PackRows(run, row, std::min(kTilesPerUpload * kTileRows, part.rows - row), &tiles);
    const std::vector<std::byte>* packed[4] = {&tiles.quants, &tiles.high, &tiles.scales,
                                               &tiles.super};
    for (int i = 0; i < 4; ++i) {
      if (array_sizes[i] == 0) continue;
      absl::Status status = uploader.Upload(arrays[i] + static_cast<size_t>(tile) * unit[i],
                                            packed[i]->data(), packed[i]->size());
      if (!status.ok()) return status;
    }
  }
  part.quants = arrays[0];
  part.high = arrays[1];
  part.scales = arrays[2];
  part.super = arrays[3];
  if (rows == nullptr) return part;
  std::vector<uint16_t> rounded;
  for (const StoredMatrix& matrix : run) {
    for (int64_t row = 0; row < matrix.rows; row += kRowsPerUpload) {
      RoundToBf16Rows(matrix, row, std::min(kRowsPerUpload, matrix.rows - row), &rounded);
      absl::Status status = uploader.Upload(rows, rounded.data(), rounded.size() * 2);
      if (!status.ok()) return status;
      rows += rounded.size() * 2;
    }
  }
  return part;
}

absl::StatusOr<std::unique_ptr<CudaMatrix>> CudaMatrix::Load(absl::Span<const StoredMatrix> parts,
                                                             const LoadMatrixOptions& options,
                                                             bool with_bf16, WeightArena& arena,
                                                             Uploader& uploader) {
  if (absl::Status status = CheckParts(parts); !status.ok()) return status;
  if (options.shard_depth < 0 || options.shard_depth > numerics::kShardDepth) {
    return absl::InvalidArgumentError(absl::StrCat(
        "LoadMatrix: shard_depth is ", options.shard_depth, ", not 0 to ", numerics::kShardDepth));
  }
  int64_t rows = 0;
  for (const StoredMatrix& part : parts) rows += part.rows;
  auto matrix = std::unique_ptr<CudaMatrix>(new CudaMatrix(rows, parts[0].cols, options));
  const int64_t pitch_bytes = RowPitch(parts[0].cols) * 2;
  std::byte* bf16 = nullptr;
  if (with_bf16 && options.for_gemm) {
    absl::StatusOr<std::byte*> memory =
        matrix->Memory(static_cast<size_t>(rows * pitch_bytes), arena);
    if (!memory.ok()) return memory.status();
    bf16 = *memory;
    matrix->bf16_ = {.format = DType::kBF16, .rows = rows, .cols = parts[0].cols, .quants = bf16};
  }
  int64_t first_row = 0;
  for (size_t begin = 0; begin < parts.size();) {
    size_t end = begin + 1;
    while (end < parts.size() && parts[end].dtype == parts[begin].dtype) ++end;
    absl::StatusOr<PackedPart> part = matrix->UploadRun(
        parts.subspan(begin, end - begin), first_row,
        bf16 == nullptr ? nullptr : bf16 + first_row * pitch_bytes, arena, uploader);
    if (!part.ok()) return part.status();
    matrix->parts_.push_back(*part);
    first_row += part->rows;
    begin = end;
  }
  return matrix;
}

}  // namespace verbatim::kernels::cuda

// Checks stored matrices, packs them into panels on all threads, and reads embedding rows.
#include "kernels/cpu/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_layout.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/block_formats.h"
#include "kernels/ops/random_matrix.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

absl::Status CheckPart(absl::Span<const StoredMatrix> parts, size_t i) {
  const StoredMatrix& part = parts[i];
  const DTypeInfo info = InfoOf(part.dtype);
  if (info.block_bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat("part ", i, ": unknown dtype"));
  }
  if (part.rows <= 0 || part.cols <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": shape [", part.rows, ", ", part.cols, "] is not positive"));
  }
  if (part.cols != parts[0].cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": cols ", part.cols, " differ from part 0's ", parts[0].cols));
  }
  if (part.cols % info.block_elements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("part ", i, ": cols ", part.cols,
                                                   " is not a multiple of ", info.block_elements,
                                                   ", the block of ", std::string(info.name)));
  }
  if (part.cols > kMaxCols) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": cols ", part.cols, " is above ", kMaxCols));
  }
  if (part.rows > (int64_t{1} << 40) / part.cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": rows ", part.rows, " times cols ", part.cols, " is too large"));
  }
  if (const char* error = ContentError(part); error != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("part ", i, ": ", error));
  }
  return absl::OkStatus();
}

}  // namespace

AlignedBytes::AlignedBytes(size_t size_bytes) : size_bytes_(size_bytes) {
  const size_t alignment = size_bytes >= kHugePage ? kHugePage : 64;
  const size_t allocated = (size_bytes + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, allocated)));
  if (data_ != nullptr && size_bytes >= kHugePage) {
    madvise(data_.get(), allocated, MADV_HUGEPAGE);  // only a hint
  }
}

PackedMatrix::~PackedMatrix() = default;

size_t PackedMatrix::size_bytes() const {
  size_t size_bytes = storage_.size_bytes();
  for (const AlignedBytes& made : made_) size_bytes += made.size_bytes();
  for (const auto& copy : library_copies_) {
    if (copy != nullptr) size_bytes += copy->size_bytes();
  }
  return size_bytes;
}

absl::Status PackedMatrix::Make(const CpuContext& context, StoredMatrix& part) {
  AlignedBytes bytes(static_cast<size_t>(part.size_bytes()));
  if (bytes.data() == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for random weights of ", part.size_bytes(), " bytes"));
  }
  context.pool->Run([&](int thread) {
    const ThreadPool::Range rows =
        ThreadPool::PartOf(part.rows, 1, thread, context.pool->threads());
    numerics::MakeRandomWeights(*part.random, rows.begin * part.cols,
                                (rows.end - rows.begin) * part.cols,
                                reinterpret_cast<uint16_t*>(bytes.data()) + rows.begin * part.cols);
  });
  part.random.reset();
  part.data = bytes.data();
  made_.push_back(std::move(bytes));
  return absl::OkStatus();
}

absl::StatusOr<OnednnWeights*> PackedMatrix::LibraryCopy(const CpuContext& context,
                                                         ActivationType type) const {
  std::unique_ptr<OnednnWeights>& copy = library_copies_[static_cast<int>(type)];
  if (copy == nullptr) {
    auto created = OnednnWeights::Create(context, parts_, type);
    if (!created.ok()) return created.status();
    copy = *std::move(created);
  }
  return copy.get();
}

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const CpuContext& context,
                                                         absl::Span<const StoredMatrix> parts,
                                                         const LoadMatrixOptions& load_options,
                                                         const GemmOptions& gemm_options) {
  if (parts.empty()) return absl::InvalidArgumentError("a matrix needs at least one part");
  if (load_options.shard_depth < 0 || load_options.shard_depth > numerics::kShardDepth) {
    return absl::InvalidArgumentError(absl::StrCat("shard_depth is ", load_options.shard_depth,
                                                   ", not 0 to ", numerics::kShardDepth));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (absl::Status status = CheckPart(parts, i); !status.ok()) return status;
  }
  std::unique_ptr<PackedMatrix> matrix(new PackedMatrix());
  matrix->cols_ = parts[0].cols;
  matrix->parts_.assign(parts.begin(), parts.end());
  matrix->load_options_ = load_options;
  matrix->gemm_options_ = gemm_options;
  if (load_options.for_experts) {
    matrix->gemm_options_.library_copies = GemmOptions::LibraryCopies::kNever;
  }
  for (StoredMatrix& part : matrix->parts_) {
    matrix->rows_ += part.rows;
    if (!part.random.has_value()) continue;
    if (absl::Status status = matrix->Make(context, part); !status.ok()) return status;
  }
  parts = matrix->parts_;
  if (!load_options.for_gemm) return matrix;

  const int64_t chunks = numerics::ChunkCount(matrix->cols_);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    matrix->tree_joins_.push_back(static_cast<uint8_t>(numerics::JoinsAfter(chunk, chunks)));
    matrix->shard_joins_.push_back(
        static_cast<int8_t>(numerics::ShardJoinsAfter(chunk, chunks, load_options.shard_depth)));
  }
  size_t size_bytes = 0;
  int64_t row = 0;
  for (const StoredMatrix& part : parts) {
    PanelSegment segment;
    segment.dtype = part.dtype;
    segment.row_begin = row;
    segment.rows = part.rows;
    segment.panel_begin = matrix->panels_;
    segment.panels = (part.rows + kPanelLanes - 1) / kPanelLanes;
    segment.panel_bytes = PanelBytes(part.dtype, part.cols);
    matrix->segments_.push_back(segment);
    size_bytes += static_cast<size_t>(segment.panels * segment.panel_bytes);
    matrix->panels_ += segment.panels;
    row += part.rows;
  }
  matrix->storage_ = AlignedBytes(size_bytes);
  if (matrix->storage_.data() == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a packed matrix of ", size_bytes, " bytes"));
  }
  std::byte* at = matrix->storage_.data();
  for (PanelSegment& segment : matrix->segments_) {
    segment.data = at;
    at += segment.panels * segment.panel_bytes;
  }
  const std::byte* base = matrix->storage_.data();
  context.pool->Run([&](int thread) {
    const ThreadPool::Range range =
        ThreadPool::PartOf(matrix->panels_, 1, thread, context.pool->threads());
    for (size_t i = 0; i < parts.size(); ++i) {
      const PanelSegment& segment = matrix->segments_[i];
      const int64_t begin = std::max(range.begin - segment.panel_begin, int64_t{0});
      const int64_t end = std::min(range.end - segment.panel_begin, segment.panels);
      for (int64_t panel = begin; panel < end; ++panel) {
        std::byte* to =
            matrix->storage_.data() + (segment.data - base) + panel * segment.panel_bytes;
        std::memset(to, 0, static_cast<size_t>(segment.panel_bytes));
        PackPanel(parts[i], panel * kPanelLanes, to);
      }
    }
  });
  if (matrix->gemm_options_.library_copies == GemmOptions::LibraryCopies::kAtLoad) {
    auto copy = matrix->LibraryCopy(context, gemm_options.library_copies_at_load);
    if (!copy.ok()) return copy.status();
  }
  return matrix;
}

void DecodeEmbeddingRow(const PackedMatrix& matrix, int64_t row, float* out) {
  for (const StoredMatrix& part : matrix.parts()) {
    if (row < part.rows) {
      DecodeRow(part.dtype, part.data + row * part.row_bytes(), part.cols, out);
      return;
    }
    row -= part.rows;
  }
}

}  // namespace verbatim::kernels::cpu
